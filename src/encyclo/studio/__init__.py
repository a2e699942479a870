"""The web app on this machine: catalogue, recorded results, and the verbs of one's own runs. Loopback only."""

from pathlib import Path


def serve(*, port: int, runs: Path) -> None:
    """Serve until interrupted.

    Args:
        port: on 127.0.0.1.
        runs: folder whose run folders are offered.
    """
    import uvicorn

    from encyclo.studio.app import create_app

    print(f"encyclo studio: http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    uvicorn.run(create_app(runs), host="127.0.0.1", port=port, log_level="warning")
