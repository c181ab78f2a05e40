import io

import numpy as np
import pytest
from conftest import PRETRAINED, run, run_predict
from PIL import Image

import evaluate
from membrane import synthetic
from membrane.inference.entries import Entry
from membrane.viewer import page

NAMES = ("<img src=x onerror=alert(1)>", "a const SCORES = 1; b", "c")


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Masks of three synthetic slices, one with a name that is HTML, and their labels."""
    root = tmp_path_factory.mktemp("page")
    for part in ("slices", "labels"):
        (root / part).mkdir()
    for seed, name in enumerate(NAMES):
        image, interior = synthetic.make_slice(200, 240, seed)
        Image.fromarray(image).save(root / "slices" / f"{name}.png")
        Image.fromarray(interior * np.uint8(255)).save(root / "labels" / f"{name}.png")
    flags = ["--model", PRETRAINED, "--probability", "--labels", "--output", root / "masks"]
    assert run_predict(root / "slices", *flags) == 0
    return root / "masks"


def test_keys_buttons_and_slider_of_the_page_do_what_they_say(masks, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def find(name):
        return browser.find_element(By.ID, name)

    def loaded(name):
        script = (
            "const i = document.getElementById(arguments[0]);return i.complete && i.naturalWidth"
        )
        WebDriverWait(browser, 10).until(lambda _: browser.execute_script(script, name) == 240)

    browser.get((masks / "index.html").as_uri())
    loaded("under")
    loaded("over")
    assert find("name").text == f"1/3 {NAMES[0]}"
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.ARROW_RIGHT)
    assert find("name").text == f"2/3 {NAMES[1]}"
    for _ in range(3):
        body.send_keys(Keys.ARROW_RIGHT)
    assert find("name").text == "3/3 c"
    body.send_keys(Keys.ARROW_LEFT)
    buttons = {
        button.text: button for button in find("layers").find_elements(By.TAG_NAME, "button")
    }
    assert list(buttons) == [
        "slice", "mask", "probability", "labels", "overlay", "labels over slice",
    ]  # fmt: skip
    buttons["slice"].click()
    assert not find("over").is_displayed()
    for name in ("mask", "probability", "labels"):
        buttons[name].click()
        loaded("over")
        assert name in find("over").get_attribute("src")
        assert find("over").value_of_css_property("opacity") == "1"
    buttons["overlay"].click()
    find("opacity").send_keys(Keys.END)
    assert find("over").value_of_css_property("opacity") == "1"
    find("opacity").send_keys(Keys.HOME)
    assert find("over").value_of_css_property("opacity") == "0"
    before = find("view").get_attribute("style")
    browser.execute_script(
        "document.getElementById('stage').dispatchEvent("
        "new WheelEvent('wheel', {deltaY: -200, clientX: 500, clientY: 400, cancelable: true}))"
    )
    assert find("view").get_attribute("style") != before
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []


def test_every_slice_is_fitted_to_the_window_whatever_its_size(tmp_path, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    shown = []
    for number, size in enumerate([(60, 300), (300, 60), (40, 44)]):
        image = synthetic.make_slice(*size, number)[0]
        views = page.make_views(image / 255, np.full(size, 255, np.uint8))
        about = {"name": f"{number}", "file": f"{number:05d}", "membrane": 0.2}
        shown.append(Entry(about, views).write(tmp_path))
    page.write_page(tmp_path / "index.html", shown, "", "")
    browser.get((tmp_path / "index.html").as_uri())
    width = "return document.getElementById('under').naturalWidth"
    sides = "const r = document.getElementById(arguments[0]).getBoundingClientRect();"
    sides += "return [r.left, r.top, r.right, r.bottom]"

    def is_fitted(wide):
        if browser.execute_script(width) != wide:
            return False
        under, stage = (
            np.array(browser.execute_script(sides, name)) for name in ("under", "stage")
        )
        outside = max(*(stage - under)[:2], *(under - stage)[2:])
        return outside < 1 and max((under[2:] - under[:2]) / (stage[2:] - stage[:2])) > 0.98

    for wide in (300, 60, 44):
        WebDriverWait(browser, 10).until(lambda _, wide=wide: is_fitted(wide))
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT)


def test_scores_are_shown_once_the_masks_are_evaluated(masks, browser):
    from selenium.webdriver.common.by import By

    assert run(evaluate, masks, masks.parent / "labels") == 0
    browser.get((masks / "index.html").as_uri())
    assert "v_rand 0.9" in browser.find_element(By.ID, "facts").text


def test_no_name_can_end_the_pages_script(tmp_path):
    shown = [{"name": "</script><b>", "membrane": 0.3, "file": "00000", "kinds": ["slice.jpg"]}]
    page.write_page(tmp_path / "index.html", shown, "</script>", "<b>")
    page.add_scores(tmp_path / "index.html", {"</script><b>": {"v_rand": 1.0}})
    text = (tmp_path / "index.html").read_text()
    assert text.count("</script>") == 3 and "<b>" not in text


def test_a_huge_slice_is_shown_thinned():
    views = page.make_views(np.zeros((5000, 100), np.float32), np.zeros((5000, 100), np.uint8))
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in views.items()}
    assert sizes == {"slice.jpg": (50, 2500), "thumb.jpg": (2, 97), "mask.png": (50, 2500)}


def test_a_slice_without_a_picture_of_a_kind_shows_none(tmp_path, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    views = page.make_views(np.ones((9, 9)), np.zeros((9, 9), np.uint8), np.ones((9, 9), "u1"))
    shown = []
    for name, kinds in (("a", list(views)), ("b", ["slice.jpg", "mask.png"])):
        about = {"name": name, "file": f"{len(shown):05d}", "membrane": 1}
        shown.append(Entry(about, {kind: views[kind] for kind in kinds}).write(tmp_path))
    page.write_page(tmp_path / "index.html", shown, "", "")
    browser.get((tmp_path / "index.html").as_uri())
    button = browser.find_element(By.XPATH, "//button[text()='probability']")
    button.click()
    assert browser.find_element(By.ID, "over").is_displayed()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT)
    assert not browser.find_element(By.ID, "over").is_displayed()
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []
