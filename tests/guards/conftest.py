from tests.prompting.conftest import bench

__all__ = ["bench"]
