"""What Chromium makes of a page: seconds until all of it is shown, and what it asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from selenium import webdriver

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


def opened(path: Path) -> tuple[float, list[str], list[str]]:
    """Open a local page in a fresh browser.

    Parameters
    ----------
    path : Path

    Returns
    -------
    seconds : float
        From the navigation to the end of the load event, images included.
    requests : list of str
        Addresses that it asked for, other than its own and those within it.
    errors : list of str
        What the console says.

    """
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options, webdriver.ChromeService(executable_path=str(DRIVER)))
    try:
        chromium.get("about:blank")
        chromium.get_log("performance")
        address = path.absolute().as_uri()
        chromium.get(address)
        timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        seconds = chromium.execute_script(timing) / 1000
        events = [json.loads(e["message"])["message"] for e in chromium.get_log("performance")]
        asked = [
            e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")
        ]
        requests = [url for url in asked if url != address and not url.startswith("data:")]
        return seconds, requests, [entry["message"] for entry in chromium.get_log("browser")]
    finally:
        chromium.quit()
