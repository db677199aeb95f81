"""Packs the chart as `helm package` does; links among its files become what they lead to.

usage: chart.py CHART FOLDER
"""

import sys

import helm_python

if __name__ == "__main__":
    print(helm_python.package(sys.argv[1], destination=sys.argv[2]))
