"""Figures of several processes add up."""

import os
import subprocess
import sys
from pathlib import Path

from service import metrics

COUNT = """
from service import metrics
from service.messages import OutcomeReceipt
metrics.count_outcomes(OutcomeReceipt(accepted=3, duplicates=1))
"""
SHOW = "print(metrics.exposition().decode())"


def run(code: str, folder: Path) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_any_process_answers_for_all_of_them(tmp_path: Path) -> None:
    run(COUNT, tmp_path)
    shown = run(COUNT + SHOW, tmp_path)
    assert 'bandit_outcomes_total{result="accepted"} 6.0' in shown
    assert 'bandit_outcomes_total{result="duplicate"} 2.0' in shown


def test_counts_have_their_room_before_the_disk_is_full(tmp_path: Path) -> None:
    run("from service import metrics", tmp_path)
    sizes = [path.stat().st_blocks * 512 for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert min(sizes) >= metrics.SHARED_BYTES, "no holes: nothing is left to be found full"
