"""Makes README's pictures again: synthetic slices, what predict.py makes of them, its page.

pip install -r requirements/dev.txt      and Chromium with its driver, for the page
python docs/pictures.py
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

import predict  # noqa: E402
from membrane.io.writers import write_pages  # noqa: E402
from membrane.synthetic import make_slice  # noqa: E402

SEEDS = (1, 2, 3)
SIDE = 512  # px
WINDOW = (1000, 640)  # px


def main() -> int:
    """Draws the slices, predicts them, keeps the contact sheet and a picture of the page."""
    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            image, _ = make_slice(SIDE, SIDE, seed)
            write_pages(Path(scratch, "slices", f"synthetic_{seed}.png"), [image])
        flags = ["--model", "pretrained", "--labels", "--output", f"{scratch}/masks"]
        if status := predict.main([f"{scratch}/slices", *flags]):
            return status
        shutil.copyfile(f"{scratch}/masks/about/contact_sheet.png", HERE / "example.png")
        photograph(Path(scratch, "masks", "index.html"), HERE / "page.png")
    return 0


def photograph(page: Path, path: Path) -> None:
    """Writes what a browser shows of a page that asks the first decision."""
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_window_size(*WINDOW)
        driver.get(page.as_uri())
        driver.find_element(By.ID, "next").click()
        status = driver.find_element(By.ID, "status")
        WebDriverWait(driver, 20).until(lambda _: status.text.startswith("decision"))
        time.sleep(1)  # until the pictures of the slices beside it are drawn
        driver.save_screenshot(str(path))
    finally:
        driver.quit()


if __name__ == "__main__":
    sys.exit(main())
