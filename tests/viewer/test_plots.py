import numpy as np
from PIL import Image

from membrane.viewer import plots

RNG = np.random.default_rng(0)


def test_the_worst_slice_comes_first_and_errors_are_coloured(tmp_path):
    images = [np.full((40, 50), level, np.float32) for level in (0.2, 0.8)]
    label = np.ones((40, 50), bool)
    label[:, 20] = False
    maps = [np.ones((40, 50)), label * 1.0]  # all membrane missed; perfect
    scores = [{"v_rand": 0.5, "v_info": 0.0}, {"v_rand": 1.0, "v_info": 1.0}]
    for order in ([0, 1], [1, 0]):
        pick = [[column[i] for i in order] for column in (["a", "b"], images, maps, scores)]
        path = tmp_path / f"{order[0]}.png"
        masks = [one > 0.5 for one in pick[2]]
        plots.draw_validation_sheet(path, *pick[:2], [label] * 2, pick[2], masks, pick[3])
        sheet = np.asarray(Image.open(path))
        assert abs(int(sheet[8 + plots.CAPTION, 8, 0]) - 51) <= 1  # the dark slice, a
        assert (sheet == plots.MISSED).all(-1).sum() == 40
        assert not (sheet == plots.INVENTED).all(-1).any()


def test_a_sheet_shows_slice_label_map_and_mask_and_cuts_long_names(tmp_path):
    image, label = np.full((30, 40), 0.2, np.float32), np.ones((30, 40), bool)
    scores, path = [{"v_rand": 0.5, "v_info": 0.0}], tmp_path / "sheet.png"
    mask = label.copy()
    mask[:, :20] = False
    plots.draw_validation_sheet(path, ["a" * 400], [image], [label], [label * 0.4], [mask], scores)
    sheet = np.asarray(Image.open(path))
    width = (sheet.shape[1] - 8) // 6  # of a panel and the gap beside it: six to a row
    panels = [sheet[8 + plots.CAPTION :, 8 + n * width :][:30, :40, 0] for n in range(4)]
    assert [int(panel[15, 30]) for panel in panels] == [51, 255, 102, 255]
    assert [int(panel[15, 10]) for panel in panels] == [51, 255, 102, 0]
    caption = sheet[8 : 8 + plots.CAPTION]
    ink = np.flatnonzero((caption < 128).any((0, 2)))
    assert ink[ink < width].max() > width - 40  # the name, as much of it as there is room for
    assert not (caption[:, width + 1 : width + 7] < 128).any()


def test_a_contact_sheet_shows_each_slice_beside_its_mask_three_to_a_row(tmp_path):
    images = [np.full((50, 60), 40 * n, np.uint8) for n in range(4)]
    masks = [255 - image for image in images]
    plots.draw_contact_sheet(tmp_path / "sheet.png", "abcd", images, masks)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[..., 0]
    rows, columns = (
        [8 + plots.CAPTION + 20, -30],
        [8 + 20 + n * (plots.THUMBNAIL + 8) for n in range(6)],
    )
    assert sheet[rows[0], columns].tolist() == [0, 255, 40, 215, 80, 175]
    assert sheet[rows[1], columns].tolist() == [120, 135, *[255] * 4]


def test_curves_are_drawn_where_values_are_known(tmp_path, monkeypatch):
    figures = []

    class Watched(plots.Figure):
        def savefig(self, *args, **options):
            figures.append(self)
            super().savefig(*args, **options)

    monkeypatch.setattr(plots, "Figure", Watched)
    row = {"loss": 0.5, "membrane_iou": 0.1, "learning_rate": 0.01}
    names = ("val_loss", "val_membrane_iou", "val_v_rand", "val_v_info")
    history = [{"epoch": 1, **row, **dict.fromkeys(names)}]
    history.append({"epoch": 2, **row, "loss": 0.25, **dict.fromkeys(names, 0.7)})
    plots.draw_curves(tmp_path / "curves.png", history)
    assert Image.open(tmp_path / "curves.png").width > 1000
    loss, validation = figures[0].axes[0].lines
    assert loss.get_xydata().tolist() == [[1, 0.5], [2, 0.25]]
    assert validation.get_xydata().tolist() == [[2, 0.7]]
    assert [len(axes.lines) for axes in figures[0].axes] == [2, 2, 2, 1]


def test_a_huge_slice_has_a_small_thumbnail():
    assert max(plots.make_thumbnail(np.zeros((3000, 50), np.uint8)).shape) == plots.THUMBNAIL
    assert plots.make_thumbnail(np.ones((10, 20), np.float32)).shape == (10, 20)
    for image, grey in ((np.full((9, 9), 200, np.uint8), 200), (np.full((9, 9), 0.4), 102)):
        assert (plots.make_thumbnail(image) == grey).all()


def test_merged_and_split_cells_are_coloured_and_numbered():
    merged, split = np.zeros((2, 60, 90), np.int32)
    merged[:, :30], split[30:, 60:] = 1, 1
    picture = plots._draw_cell_errors(np.full((60, 90), 128, np.uint8), merged, split).astype(int)
    redder = picture[..., 0] - picture[..., 2] > 60
    bluer = picture[..., 2] - picture[..., 0] > 30
    assert redder[:, :30].mean() > 0.7 and not redder[:, 30:].any()
    assert bluer[30:, 60:].mean() > 0.5 and not bluer[:, :60].any()
    assert (picture[:, :30] == 255).any() and (picture[30:, 60:] == 255).any()  # the numbers
    assert (picture[:, 32:58] == 128).all()
