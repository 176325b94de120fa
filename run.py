"""Protect, customize, evaluate: `python run.py attack=simac dataset=vggface2`. `python run.py
--help` shows the choices.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> list[Path] | None:
    # after --help, which needs none of it; libraries are silenced before they are imported
    from experiments.terminal import quiet_libraries

    quiet_libraries()
    from experiments.run.main import run

    return run(config)


if __name__ == "__main__":
    main()
