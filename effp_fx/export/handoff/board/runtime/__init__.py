"""What run.py, check.py and calibrate.py share. Needs numpy; Python 3.8, which JetPack 5 brings, is enough."""
