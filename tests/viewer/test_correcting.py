"""Corrections made in a browser, against what the same operations make of a mask here."""

import base64
import io
import json
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from membrane import synthetic
from membrane.inference.corrections import Corrections
from membrane.viewer import page

HEIGHT, WIDTH = 200, 240
KEY, SLICE_KEY = "0123456789abcdef", "fedcba9876543210"
NAMES = ("<script>alert(1)</script>", '../"quo\'ted"/\\', "c")  # of slices
FILES = ("<script>alert(1)<_script>.png", '.._"quo\'ted"__.png', "c.png")


def make_mask():
    """Cells of 37 × 37 px in rows and columns, 3 px of membrane between them."""
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for first in range(3):
        mask[first::40] = mask[:, first::40] = 0
    return mask


def flat(pixels):
    return [y * WIDTH + x for x, y in pixels]


# through the middle of a cell from top to bottom, and through the membrane between two cells
CUT = {
    "at": [60, 60], "sides": [[50, 60], [62, 60]], "joined": True, "odds": 0.2, "length": 37,
    "smaller": 600, "pixels": flat((60, y) for y in range(43, 80)),
}  # fmt: skip
GAP = {
    "at": [121, 100], "sides": [[110, 100], [130, 100]], "joined": False, "odds": -0.1, "length": 5,
    "smaller": 1369, "pixels": flat((x, y) for x in range(120, 123) for y in range(98, 103)),
}  # fmt: skip
DECISIONS = [[GAP | {"gain": 3.0}, CUT | {"gain": 1.0}], [CUT | {"gain": 4.0}], [CUT | {"gain": 2}]]


# a folder in the browser's memory, as if the user had picked one
FOLDER = """
window.written = {};
const make = (path) => ({
  name: "picked",
  getDirectoryHandle: async (name, {create = false} = {}) => {
    const error = (kind) => Object.assign(new Error(), {name: kind});
    if (path + name === "training-2") throw error("TypeMismatchError");  // a file of this name
    if (!create && path + name !== "training") throw error("NotFoundError");
    return make(`${path}${name}/`);
  },
  getFileHandle: async (name) => ({createWritable: async () => ({
    write: async (bytes) => { written[path + name] = [...bytes]; }, close: async () => {},
  })}),
});
window.showDirectoryPicker = async () => make("");
"""


MARKS = "$('marks').getContext('2d').getImageData(0, 0, current.width, current.height).data"


def data_url(picture):
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write_slice(folder, number, name, decisions, image=None, mask=None, **more):
    """Writes the pictures and the script of a slice; returns what the page says of it."""
    image = synthetic.make_slice(HEIGHT, WIDTH, number)[0] if image is None else image
    mask = make_mask() if mask is None else mask
    views = page.make_views(image / 255, mask)
    cells = [[x + 3, y + 3, 1369, 0.75] for y in range(0, 200, 40) for x in range(0, 240, 40)]
    content = {
        "shape": list(mask.shape), "mask": data_url(mask), "image": data_url(image),
        "cells": cells, "decisions": decisions,
    }  # fmt: skip
    (folder / "about" / "page").mkdir(parents=True, exist_ok=True)
    for end, view in views.items():
        page.picture_path(folder, f"{number:05d}", end).write_bytes(view)
    script = f'loadSlice("{number:05d}", {json.dumps(content | more)});'
    page.picture_path(folder, f"{number:05d}", "edit.js").write_text(script)
    objects = [[x, y, 100 * number + n] for n, (x, y, *_) in enumerate(cells)]
    script = f'loadObjects("{number:05d}", {json.dumps(objects)});'
    page.picture_path(folder, f"{number:05d}", "objects.js").write_text(script)
    gains = [one["gain"] for one in decisions]
    about = {"name": name, "membrane": 0.2, "file": f"{number:05d}", "editable": True}
    about |= {"key": SLICE_KEY, "slice": number, "size": list(mask.shape), "pixel_size": 6}
    return about | {"kinds": [*views, "labels.png"], "save_as": f"{name}.png", "gains": gains}


class Editor:
    """The page in a browser."""

    def __init__(self, browser, downloads, folder):
        from selenium.webdriver.common.by import By

        self.browser, self.downloads, self.by = browser, downloads, By
        browser.get((folder / "index.html").as_uri())
        browser.execute_script("localStorage.clear()")
        self.reload()

    def reload(self):
        self.browser.refresh()
        self.browser.execute_script("window.showDirectoryPicker = undefined")
        self.wait_for_mask()

    def wait(self, true, seconds=10):
        end = time.monotonic() + seconds
        while not (value := true()):
            assert time.monotonic() < end, self.text("status")
            time.sleep(0.02)
        return value

    def ask(self, expression, *args):
        return self.browser.execute_script(f"return {expression}", *args)

    def wait_for_mask(self):
        self.wait(lambda: self.ask("current !== null || !DATA.slices[shown].editable"))

    def find(self, name):
        return self.browser.find_element(self.by.ID, name)

    def text(self, name):
        return self.ask("document.getElementById(arguments[0]).textContent", name)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def press_control(self, key, shift=False):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        held = [Keys.CONTROL, Keys.SHIFT][: 1 + shift]
        actions = ActionChains(self.browser)
        for one in held:
            actions.key_down(one)
        actions.send_keys(key)
        for one in held:
            actions.key_up(one)
        actions.perform()

    def decide(self, key, progress):
        """Waits for a decision, and takes it."""
        self.wait(lambda: self.text("status").startswith(f"decision {progress}"))
        name = self.text("name")
        self.press(key)
        return name

    def drag(self, *points, shift=False):
        """Drags from pixel to pixel of the slice; one point is a click."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        stage = self.find("stage")
        places = self.ask(
            "arguments[0].map(([x, y]) => [left + zoom * (x + 0.5) - $('stage').clientWidth / 2, "
            "top_ + zoom * (y + 0.5) - $('stage').clientHeight / 2].map(Math.round))",
            points,
        )
        actions = ActionChains(self.browser, duration=0)
        actions.key_down(Keys.SHIFT) if shift else None
        for number, (x, y) in enumerate(places):
            actions.move_to_element_with_offset(stage, x, y)
            actions.click_and_hold() if number == 0 else None
        actions.release()
        actions.key_up(Keys.SHIFT) if shift else None
        actions.perform()

    def operations(self, name):
        """Returns what the browser has kept of a slice."""
        kept = json.loads(self.ask("localStorage.getItem(arguments[0])", f"membrane-{KEY}"))
        return [entry["operation"] for entry in kept["log"] if entry["slice"] == name]

    def marks(self):
        """Returns what lies over the slice, RGBA."""
        return np.array(self.ask(f"[...{MARKS}]")).reshape(HEIGHT, WIDTH, 4)

    def load(self, path, content):
        """Loads corrections, in the sheet."""
        path.write_text(json.dumps(content))
        self.browser.execute_script("$('told').textContent = ''")
        self.wait(lambda: self.find("load").is_enabled())
        self.find("load").send_keys(str(path))

    def save(self, button, name):
        """Saves by a button of the sheet; returns the content of the file."""
        if not self.ask("$('saving').open"):
            self.press_control("s")
        self.find(button).click()
        path = self.downloads / name
        self.wait(path.exists)
        self.wait(lambda: self.text("told") and "…" not in self.text("told"))
        content = path.read_bytes()
        path.unlink()
        return content

    def close(self):
        self.browser.execute_script("$('saving').close()")

    def complaints(self):
        return [one for one in self.browser.get_log("browser") if one["level"] == "SEVERE"]


def read_zip(content):
    """Returns the pixels of each grey PNG of a ZIP, by its path."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        pictures = {name: Image.open(archive.open(name)) for name in archive.namelist()}
    assert all(one.mode == "L" and one.format == "PNG" for one in pictures.values())
    return {name: np.asarray(one) for name, one in pictures.items()}


def find_stroke(points, size):
    """Tells of each pixel whether it is at most size / 2 from the line through the points."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
        dx, dy = x1 - x0, y1 - y0
        length = max(dx * dx + dy * dy, 1)
        along = np.clip((x - x0) * dx + (y - y0) * dy, 0, dx * dx + dy * dy)
        off = ((x - x0) * length - along * dx) ** 2 + ((y - y0) * length - along * dy) ** 2
        drawn |= 4 * off <= (size * length) ** 2
    return drawn


def find_touched(operation):
    """Tells of each pixel whether an operation is about it."""
    if "points" in operation:
        return find_stroke(operation["points"], operation["size"])
    touched = np.zeros((HEIGHT, WIDTH), bool)
    touched.ravel()[operation.get("pixels") or flat([operation["at"]])] = True
    return touched


def correct(mask, operations):
    """Returns a mask after operations on it."""
    mask = mask.copy()
    for operation in operations:
        if operation["kind"] != "leave" and operation.get("pixels") != []:
            mask[find_touched(operation)] = 255 * (operation["kind"] in ("join", "cell"))
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prediction of three slices, with decisions."""
    folder = tmp_path_factory.mktemp("correcting")
    slices = [write_slice(folder, n, NAMES[n], DECISIONS[n]) for n in range(3)]
    page.write_page(folder / "index.html", slices, "", "", KEY)
    return folder


@pytest.fixture
def editor(browser, downloads, folder):
    editor = Editor(browser, downloads, folder)
    yield editor
    assert editor.complaints() == []


def plain(decision, kind):
    """Returns the operation that a decision becomes."""
    kept = ("at", "sides") if kind == "leave" else ("at", "sides", "pixels")
    return {"kind": kind} | {key: decision[key] for key in kept}


def test_what_is_decided_by_keys_and_painted_is_kept_saved_and_loaded(editor, tmp_path):
    from selenium.webdriver.common.keys import Keys

    editor.press("n")
    editor.decide("s", "1 of 4: joined now, 37 px of border, smaller side 600 px · 0 %")
    words = "2 of 4: separate now, 5 px of border, smaller side 1369 px · 40 %"
    assert editor.decide("j", words) == f"1/3  {NAMES[0]}"
    editor.decide("l", "3 of 4")
    editor.decide("b", "4 of 4: joined now, 37 px of border, smaller side 600 px · 90 %")
    editor.decide("j", "3 of 4: joined now")  # as it is
    editor.wait(lambda: editor.text("status").startswith("decision 4"))
    assert editor.operations(NAMES[1]) == [plain(CUT, "separate")]
    assert editor.operations(NAMES[2]) == [plain(CUT, "join") | {"pixels": []}]

    editor.press(Keys.ESCAPE, "0", "2", "]", "]", "]")  # the first slice, brush of 8 px
    editor.wait_for_mask()
    editor.drag([20, 20], [31, 26], [25, 35])
    editor.drag([100, 130], shift=True)
    editor.press("3")
    editor.drag([140, 121])
    editor.press("4")
    editor.drag([201, 100], [239, 104])  # from membrane, through a cell, to its other side
    assert editor.text("status") == "Split into 2 cells."
    editor.drag([121, 60], [190, 66])  # into the next cell: that is left whole
    assert editor.text("status") == "Split into 2 cells."
    editor.press("5")
    editor.drag([60, 180], [95, 190])
    editor.drag([60, 180], [65, 170])
    assert editor.text("status") == "That is one cell already."
    editor.press("2", "[", Keys.ARROW_RIGHT, "p")
    done = editor.operations(NAMES[0])
    assert done[0] == plain(GAP, "join")
    assert [one["kind"] for one in done] == [
        "join", "membrane", "membrane", "cell", "membrane", "membrane", "cell", "membrane",
    ]  # fmt: skip
    assert done[1]["size"] == done[3]["size"] == 8 and done[7]["size"] == 7
    assert [done[1]["points"][n] for n in (0, -1)] == [[20, 20], [25, 35]]
    assert done[2]["points"] == [[25, 35], [100, 130]] and done[3]["points"] == [[140, 121]]
    for number, line in ((4, [[201, 100], [239, 104]]), (5, [[121, 60], [190, 66]])):
        before = correct(make_mask(), done[:number])
        cells = ndimage.label(before)[0]
        crossed = cells * find_stroke(line, 1)
        first = cells[100, 210] if number == 4 else cells[60, 130]
        assert sorted(done[number]["pixels"]) == np.flatnonzero(crossed == first).tolist()
        assert ndimage.label(correct(before, [done[number]]))[1] == cells.max() + 1
    assert done[6] == {"kind": "cell", "size": 3, "points": [[60, 180], [95, 190]]}

    editor.press_control("z")
    editor.press_control("z")
    editor.press_control("z")
    editor.press_control("z", shift=True)
    editor.press_control("y")
    assert editor.operations(NAMES[0]) == done[:7]
    assert editor.text("unsaved") == "3 slices with unsaved corrections"
    editor.reload()
    assert editor.text("unsaved") == "3 slices with unsaved corrections"
    done = [editor.operations(name) for name in NAMES]
    expected = {file: correct(make_mask(), one) for file, one in zip(FILES, done, strict=True)}
    saved = editor.save("save-masks", "masks.zip")
    assert editor.text("unsaved") == ""
    content = editor.save("save-corrections", "corrections.json")
    found = json.loads(content)
    slices = dict(zip(NAMES, done, strict=True))
    keys = dict.fromkeys(NAMES, SLICE_KEY)
    assert found == {"slices": slices, "keys": keys, "prediction": KEY}

    editor.close()
    editor.browser.execute_script("localStorage.clear()")
    editor.reload()
    editor.press_control("s")
    editor.load(tmp_path / "corrections.json", found)
    editor.wait(lambda: editor.text("told") == "Corrections of 3 slices loaded.")
    saved_again = editor.save("save-masks", "masks.zip")
    for pictures in (read_zip(saved), read_zip(saved_again)):
        assert list(pictures) == list(FILES)
        for name, mask in expected.items():
            np.testing.assert_array_equal(pictures[name], mask)
    for name, mask in zip(NAMES, expected.values(), strict=True):  # and as predict.py has it
        predicted = make_mask() > 0
        Corrections(found["slices"]).apply(name, predicted, None, (HEIGHT, WIDTH))
        np.testing.assert_array_equal(predicted * np.uint8(255), mask)
    editor.close()
    editor.press("n")  # what is decided is not asked again
    editor.wait(lambda: editor.text("status").startswith("decision 4 of 4"))


def test_a_decision_is_tinted_in_the_middle_whatever_is_painted_beside_it(editor):
    editor.press("n")
    editor.wait(lambda: editor.text("status").startswith("decision 1 of 4: joined"))
    marks = editor.marks()
    assert (marks[43:80, 60] == [240, 228, 66, 255]).all()
    assert (marks[43:80, 43:60, 2] > 200).all() and (marks[43:80, 61:80, 0] > 200).all()
    editor.press("j")
    editor.decide("2", "2 of 4: separate")  # the first of its slice
    for painted in ([], [60, 60]):
        if painted:
            editor.drag(painted)
            assert editor.operations(NAMES[0])[0]["points"] == [painted]
        marks = editor.marks()
        assert (marks[98:103, 120:123] == [240, 228, 66, 255]).all()
        tinted = ndimage.label(marks[..., 3] == 110)
        assert tinted[1] == 2 and (tinted[0] > 0).sum() == 2 * 37 * 37
        blue, orange = marks[100, 110], marks[100, 130]
        assert blue[2] > 200 > 100 > blue[0] and orange[0] > 200 > 30 > orange[2]
    middle = editor.ask("[left + zoom * 121.5, $('stage').clientWidth / 2]")
    assert abs(middle[0] - middle[1]) < 1
    # the same place of the slice after it is beside it; there is none before
    assert editor.ask("$('earlier').parentElement.hidden && !$('later').parentElement.hidden")
    assert editor.ask("$('later').wanted.src").endswith("00001-slice.jpg")


def test_to_leave_two_sides_one_cell_opens_no_border_and_mends_what_was_painted(
    browser, downloads, tmp_path
):
    across = CUT | {"at": [58, 60], "sides": [[58, 50], [58, 70]], "gain": 1.0}
    across["pixels"] = flat((x, 60) for x in range(43, 80))
    lower = CUT | {"at": [60, 180], "sides": [[50, 180], [70, 180]], "gain": 0.5}
    lower["pixels"] = flat((60, y) for y in range(163, 200))
    slices = [write_slice(tmp_path, 0, "a", [CUT | {"gain": 2.0}, across, lower])]
    page.write_page(tmp_path / "index.html", slices, "", "", KEY)
    editor = Editor(browser, downloads, tmp_path)
    editor.press("2")
    editor.drag([60, 165], [60, 199])
    editor.drag([60, 165], [60, 160])
    assert ndimage.label(correct(make_mask(), editor.operations("a")))[1] == 31
    editor.press("n")
    editor.decide("s", "1 of 3: joined now")
    editor.decide("j", "2 of 3: joined now")  # crosses the cut
    editor.decide("j", "3 of 3: separate now")  # painted over
    *painted, cut, crossed, mended = editor.operations("a")
    assert [cut, crossed] == [plain(CUT, "separate"), plain(across, "join") | {"pixels": []}]
    assert mended == {"kind": "cell", "pixels": lower["pixels"]}
    now = np.array(editor.ask("[...current.now]")).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(now, correct(make_mask(), [*painted, cut, mended]))
    editor.wait(lambda: editor.text("status") == "No decision is open.")
    editor.press("b")
    editor.wait(lambda: editor.text("status").startswith("decision 3 of 3: separate now"))
    assert editor.operations("a") == [*painted, cut, crossed]


def test_a_stroke_that_is_not_finished_leaves_nothing(editor):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in (".", "4"):  # the next slice, another tool
        editor.press("2")
        stage = editor.find("stage")
        actions = ActionChains(editor.browser, duration=0).move_to_element_with_offset(stage, 5, 5)
        actions.click_and_hold().move_by_offset(60, 9).perform()
        assert editor.ask("current.now.some((value, index) => value !== current.base[index])")
        actions = ActionChains(editor.browser, duration=0)
        actions.send_keys(key).release().send_keys(",").perform()
        editor.wait(lambda: editor.ask("shown === 0 && current !== null"))
        assert editor.ask("current.now.every((value, index) => value === current.base[index])")
        assert editor.text("unsaved") == ""


def check_mask(editor):
    """The mask on the slice shown is that of what is kept."""
    name = editor.ask("DATA.slices[shown].name")
    now = np.array(editor.ask("[...current.now]")).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(now, correct(make_mask(), editor.operations(name)))


def test_what_is_undone_quickly_is_gone_and_comes_back_where_it_was(editor):
    editor.press("2")
    for row in (20, 60, 100):
        editor.drag([20, row], [30, row])
    editor.press(".")
    editor.wait_for_mask()
    for _ in range(2):
        editor.press_control("z")
    editor.wait_for_mask()
    assert editor.ask("shown") == 0 and len(editor.operations(NAMES[0])) == 1
    check_mask(editor)

    editor.press("n")
    editor.decide("s", "1 of 4")
    editor.wait(lambda: editor.text("status").startswith("decision 2"))
    editor.browser.execute_script("show(1)")
    editor.wait_for_mask()
    editor.press("3")
    editor.drag([60, 50], [60, 70])  # over the cut
    kinds = [one["kind"] for one in editor.operations(NAMES[1])]
    editor.press("b")
    editor.wait(lambda: editor.text("status").startswith("decision 1"))
    editor.press_control("y")
    assert [one["kind"] for one in editor.operations(NAMES[1])] == kinds == ["separate", "cell"]
    check_mask(editor)
    editor.press_control("z")
    editor.browser.execute_script(
        "putBefore('c', [1, 2].map((x) => ({ kind: 'cell', size: 1, points: [[x, 1]] })), [])"
    )  # as of a slice that is opened meanwhile, with corrections of its masks' own
    editor.press_control("y")
    assert [one["kind"] for one in editor.operations(NAMES[1])] == kinds
    check_mask(editor)


def test_a_brush_beside_the_slice_and_a_second_finger_paint_nothing(editor):
    from selenium.webdriver.common.action_chains import ActionChains

    editor.press("2")
    stage = editor.find("stage")
    corner = [3 - stage.size["width"] // 2, 3 - stage.size["height"] // 2]
    actions = ActionChains(editor.browser, duration=0)
    actions.move_to_element_with_offset(stage, *corner).perform()
    assert min(editor.ask("cursor")) < 0
    editor.press("p")
    assert editor.ask("kept.log.length") == 0

    def touch(kind, *fingers):
        points = [{"x": box[0] + x, "y": box[1] + y, "id": n} for n, (x, y) in enumerate(fingers)]
        command = {"type": f"touch{kind}", "touchPoints": points}
        editor.browser.execute_cdp_cmd("Input.dispatchTouchEvent", command)

    box = editor.ask("[$('stage').getBoundingClientRect()].map((b) => [b.x + left, b.y + top_])[0]")
    touch("Start", (40, 90))
    touch("Move", (60, 90))
    touch("Start", (60, 90), (300, 200))
    touch("Move", (60, 90), (280, 200))
    touch("Move", (80, 90), (260, 200))
    touch("End")
    editor.wait(lambda: editor.ask("kept.log.length") == 1)
    [stroke] = editor.operations(NAMES[0])
    assert len({y for _, y in stroke["points"]}) == 1 and len(stroke["points"]) == 3
    editor.drag([20, 20])
    assert len(editor.operations(NAMES[0])) == 2


def test_what_is_painted_while_masks_are_written_is_not_saved_yet(editor):
    from selenium.webdriver.common.keys import Keys

    editor.press("2")
    editor.drag([20, 20])
    editor.browser.execute_script(
        "const encode = encodePng; encodePng = async (...given) => {"
        "const made = await encode(...given); await new Promise((go) => setTimeout(go, 500));"
        "return made; }"
    )
    editor.press_control("s")
    editor.wait(lambda: editor.find("save-masks").is_enabled())
    editor.find("save-masks").click()
    editor.press(Keys.ESCAPE)
    editor.drag([100, 20])
    path = editor.downloads / "masks.zip"
    editor.wait(path.exists)
    editor.wait(lambda: editor.text("status").startswith("1 mask saved"))
    [mask] = read_zip(path.read_bytes()).values()
    path.unlink()
    first = editor.operations(NAMES[0])[:1]
    np.testing.assert_array_equal(mask, correct(make_mask(), first))
    assert editor.text("unsaved") == "1 slice with unsaved corrections"


def test_a_decision_is_asked_when_its_slice_is_seen(editor):
    from selenium.webdriver.common.keys import Keys

    editor.browser.execute_script("$('under').decode = () => new Promise((go) => { seen = go; })")
    editor.press("n")
    editor.wait(lambda: editor.ask("typeof seen === 'function'"))
    editor.press("s")
    assert editor.ask("asked") is None and editor.ask("kept.log.length") == 0
    editor.press(Keys.ESCAPE)
    editor.browser.execute_async_script("seen(); seen = null; setTimeout(arguments[0], 100)")
    assert editor.ask("asked") is None
    editor.press("n")
    editor.wait(lambda: editor.ask("typeof seen === 'function'"))
    editor.browser.execute_script("seen()")
    editor.wait(lambda: editor.text("status").startswith("decision 1"))


def test_masks_are_written_into_a_folder_where_the_browser_can(editor):
    editor.press("n")
    editor.decide("s", "1 of 4")
    editor.browser.execute_script(FOLDER)
    editor.press_control("s")
    editor.find("save-training").click()
    editor.wait(lambda: editor.text("told").startswith("1 slice saved in picked/picked."))
    written, place = editor.ask("written"), "training-3/train"  # nothing is overwritten
    assert sorted(written) == [f"{place}/imgs/{FILES[1]}", f"{place}/labels/{FILES[1]}"]
    label = Image.open(io.BytesIO(bytes(written[f"{place}/labels/{FILES[1]}"])))
    expected = correct(make_mask(), editor.operations(NAMES[1]))
    np.testing.assert_array_equal(np.asarray(label), expected)


def test_a_click_tells_about_a_cell_and_the_cells_over_it(editor):
    editor.drag([20, 20])
    words = "cell 0: 1369 px, mean P(interior) 0.75 · after: cell 100, 1369 px"
    editor.wait(lambda: editor.text("status") == words)
    editor.press("5")
    editor.drag([20, 20], [60, 20])
    editor.press("1")
    editor.drag([20, 20])
    words = "cell 0 and 1: 2747 px, mean P(interior) 0.75 · after: cell 10"
    editor.wait(lambda: editor.text("status").startswith(words))
    editor.press(".", "4")
    editor.wait_for_mask()
    editor.drag([8, 1], [8, 41])  # in the slice after, a strip off the first cell
    editor.press(",", "1")
    editor.wait_for_mask()
    editor.drag([5, 20])
    editor.wait(lambda: editor.text("status") == f"{words}1, 1369 px")


def test_strange_names_are_text_and_corrections_of_other_slices_are_refused(editor, tmp_path):
    from selenium.webdriver.support.expected_conditions import alert_is_present
    from selenium.webdriver.support.ui import WebDriverWait

    titles = editor.ask("[...$('slices').children].map((item) => item.title)")
    assert tuple(titles) == NAMES
    editor.press("n")
    editor.decide("s", "1 of 4")
    editor.press_control("s")
    keys = {NAMES[0]: SLICE_KEY, "c": SLICE_KEY}
    good = {"slices": {NAMES[0]: [plain(GAP, "join")]}, "keys": keys}
    for wrong, words in (
        (good | {"keys": {NAMES[0]: "0" * 16}}, "corrections of another slice <script>"),
        (good | {"keys": {}}, "corrections of another slice <script>"),
        (good | {"slices": {"d": [plain(GAP, "join")]}}, "no such slice here: d"),
        (good | {"slices": {"c": [{"kind": "cell", "size": 65, "points": [[1, 1]]}]}}, "not corr"),
        ([], "not corrections"),
    ):
        editor.load(tmp_path / "other.json", wrong)
        editor.wait(lambda words=words: editor.text("told").startswith(f"Not done: {words}"))
    assert editor.operations(NAMES[1]) == [plain(CUT, "separate")]
    for accept, count in ((False, 1), (True, 0)):
        editor.load(tmp_path / "good.json", good)
        alert = WebDriverWait(editor.browser, 10).until(alert_is_present())
        alert.accept() if accept else alert.dismiss()
        editor.wait(lambda: editor.find("load").is_enabled())
        assert len(editor.operations(NAMES[1])) == count
    assert editor.operations(NAMES[0]) == [plain(GAP, "join")]
    assert editor.text("told") == "Corrections of 1 slice loaded."
    editor.load(tmp_path / "good.json", good | {"prediction": "another"})
    WebDriverWait(editor.browser, 10).until(alert_is_present()).accept()
    editor.wait(lambda: "They were made on another prediction" in editor.text("told"))


@pytest.mark.parametrize("near", [False, True])
def test_a_training_set_has_slices_and_labels_unknown_far_from_corrections(editor, near):
    editor.press("n")
    editor.decide("s", "1 of 4")
    editor.decide("l", "2 of 4")
    editor.wait(lambda: editor.text("name").endswith(NAMES[2]))
    editor.press("t")  # a slice that was not corrected: nothing of it is known for certain
    editor.press_control("s")
    if near:
        editor.find("near").click()
    pictures = read_zip(editor.save("save-training", "training.zip"))
    names = FILES[:2] if near else FILES
    assert sorted(pictures) == sorted(
        f"train/{part}/{name}" for name in names for part in ("imgs", "labels")
    )
    command = "python train.py --data MINE --init pretrained --pixel-size 6"
    command += " --ignore 128" * near
    assert editor.text("told").endswith(command)
    for number, name in enumerate(names):
        operations = editor.operations(NAMES[number]) if number < 2 else []
        label = correct(make_mask(), operations)
        if near:
            touched = np.logical_or.reduce([*map(find_touched, operations)])
            label[ndimage.distance_transform_edt(~touched) > 48] = 128
            assert 0.1 < (label == 128).mean() < 0.9
        np.testing.assert_array_equal(pictures[f"train/labels/{name}"], label)
        image = synthetic.make_slice(HEIGHT, WIDTH, number)[0]
        np.testing.assert_array_equal(pictures[f"train/imgs/{name}"], image)


def test_what_a_browser_cannot_keep_or_python_has_corrected_is_told(browser, downloads, tmp_path):
    earlier = [{"kind": "cell", "size": 9, "points": [[41, 60]]}, plain(CUT, "separate")]
    slices = [
        write_slice(tmp_path, 0, "a", [CUT | {"gain": 1}]),
        write_slice(tmp_path, 1, "b", []),
        write_slice(tmp_path, 2, "c", [CUT | {"gain": 1}], operations=earlier),
        write_slice(tmp_path, 3, "d", [CUT | {"gain": 1}], operations=earlier) | {"corrected": 2},
    ]
    page.write_page(tmp_path / "index.html", slices, "", "", KEY)
    editor = Editor(browser, downloads, tmp_path)
    leave = "(() => { const event = new Event('beforeunload', {cancelable: true});"
    leave += "window.dispatchEvent(event); return event.defaultPrevented; })()"
    editor.press("2")
    editor.drag([20, 60])
    assert not editor.ask(leave)
    editor.browser.execute_script("Storage.prototype.setItem = () => { throw new Error(); }")
    editor.drag([20, 20])
    told = "1 slice with unsaved corrections; this browser keeps nothing: save before you close"
    assert editor.text("unsaved") == told and editor.ask(leave)
    editor.browser.execute_script("window.dispatchEvent(new StorageEvent('storage', {key: STORE}))")
    assert editor.ask("kept.log.length") == 4  # another window does not replace what is kept here
    pictures = read_zip(editor.save("save-masks", "masks.zip"))
    assert list(pictures) == ["a.png", "c.png", "d.png"] and not editor.ask(leave)
    saved = json.loads(editor.save("save-corrections", "corrections.json"))["slices"]
    for name in "cd":
        assert saved[name] == earlier
        np.testing.assert_array_equal(pictures[f"{name}.png"], correct(make_mask(), earlier))
    assert editor.complaints() == []


def test_a_slice_without_what_corrections_need_can_be_looked_at(browser, downloads, tmp_path):
    slices = [write_slice(tmp_path, 0, "a", []), write_slice(tmp_path, 1, "b", [CUT | {"gain": 1}])]
    for key in ("editable", "gains", "save_as"):
        del slices[0][key]
    page.picture_path(tmp_path, "00000", "edit.js").unlink()
    page.write_page(tmp_path / "index.html", slices, "", "", KEY)
    editor = Editor(browser, downloads, tmp_path)
    editor.wait(lambda: editor.ask("broken.has(0)"))
    assert editor.ask("$('over').checkVisibility({visibilityProperty: true})")
    editor.press("2")
    editor.drag([20, 20])
    assert "can only be looked at" in editor.text("status")
    editor.press("n")
    editor.decide("s", "1 of 1")
    editor.wait(lambda: editor.text("status") == "No decision is open.")
    assert editor.complaints() == []
    page.picture_path(
        tmp_path, "00001", "edit.js"
    ).unlink()  # of a folder that was not copied whole
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    editor.press("n")
    editor.wait(lambda: editor.text("status") == "No decision is open.")
    assert "edit.js" in editor.complaints()[0]["message"]


def test_three_hundred_slices_open_at_once_and_few_are_in_memory(browser, downloads, tmp_path):
    image, mask = np.full((HEIGHT, WIDTH), 99, np.uint8), make_mask()
    slices = [
        write_slice(tmp_path, n, f"{n}", [CUT | {"gain": n % 7 + n / 1000}], image, mask)
        for n in range(300)
    ]
    page.write_page(tmp_path / "index.html", slices, "", "", KEY)
    began = time.monotonic()
    editor = Editor(browser, downloads, tmp_path)  # opens it twice
    assert time.monotonic() - began < 10
    assert editor.ask("document.querySelectorAll('*').length") < 300 * 5 + 200
    editor.wait(lambda: editor.ask("document.querySelectorAll('#slices img').length") > 3)
    assert editor.ask("document.querySelectorAll('img').length") < 40
    editor.press("n")
    for rank, number in enumerate((293, 286, 279, 272, 265, 258, 251, 244)):
        assert editor.decide("s", f"{rank + 1} of 300") == f"{number + 1}/300  {number}"
        item = "$('slices').children[arguments[0]].getBoundingClientRect()"
        assert 0 < editor.ask(f"{item}.top", number) < editor.ask("innerHeight")
    assert editor.ask("opened.size") <= 6
    editor.find("order").click()
    first = editor.ask("[...$('slices').children].map((item) => Number(item.title)).slice(0, 2)")
    assert first == [237, 230]
    assert editor.complaints() == []
