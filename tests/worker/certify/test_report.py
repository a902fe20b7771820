"""The page and the picture: self-contained, complete, and safe whatever a model is called."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest

from models.certificate_curves import Figure, Series, Value, figures, marks_of, ratio_figure
from tests.worker.certify.made import certificate
from worker.certify.chart import HEIGHT, WIDTH, lay_out
from worker.certify.page import draw_page
from worker.certify.picture import draw_picture

HOSTILE = "<script>alert(1)</script>$x_1$"


@pytest.fixture(scope="module")
def page() -> str:
    return draw_page(certificate(HOSTILE))


class TestPage:
    def test_has_every_identity_and_every_customer(self, page: str) -> None:
        made = certificate()
        tools = made.instruments
        for text in (
            made.plan_hash,
            tools.safety_set_hash,
            tools.prompt_set_hash,
            tools.template_hash,
            *made.model.data_hashes.values(),
            tools.judge.name,
            "titer.certificate/1",
        ):
            assert text in page
        assert page.count('<th scope="row">') == len(made.customers)

    def test_needs_nothing_from_elsewhere_and_runs_nothing(self, page: str) -> None:
        assert not re.search(r"(?:src|href|url|@import)\s*[=(]", page)
        assert "<script" not in page
        assert "style=" not in page
        assert "&lt;script&gt;" in page
        assert "made &lt;by&gt; hand" in page

    def test_its_markup_closes_what_it_opens(self, page: str) -> None:
        body = page[page.index("<body>") : page.index("</body>") + len("</body>")]
        ElementTree.fromstring(body)

    def test_knows_narrow_screens_dark_ones_and_paper(self, page: str) -> None:
        for query in ("max-width: 760px", "prefers-color-scheme: dark", "@media print"):
            assert query in page

    def test_charts_can_be_read_without_being_seen(self, page: str) -> None:
        labels = re.findall(r'role="img" aria-label="([^"]+)"', page)
        assert len(labels) == 4
        assert any("mix 10%" in label and "4: 91%" in label for label in labels)


class TestChart:
    def test_everything_lies_on_the_canvas(self) -> None:
        for chart in map(lay_out, figures(certificate())):
            for line in chart.lines:
                assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line.points)
            assert len(chart.x_ticks) >= 2
            assert chart.y_ticks[0].at > chart.y_ticks[-1].at

    def test_rates_stand_on_a_logarithmic_axis(self) -> None:
        values = tuple(Value(x, 50) for x in (1e-4, 1e-3, 1e-2))
        figure = Figure("t", "x", (Series("a", 0, values),), is_logarithmic=True)
        xs = [x for x, _ in lay_out(figure).lines[0].points]
        assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])

    def test_a_single_point_and_a_loss_of_nothing_can_be_drawn(self) -> None:
        figure = Figure("t", "x", (Series("a", 0, (Value(3, 0),)),), is_share=False)
        chart = lay_out(figure)
        assert chart.lines[0].points[0][0] == pytest.approx((chart.left + chart.right) / 2)
        assert chart.lines[0].band == ""

    def test_labels_of_many_steps_do_not_touch(self) -> None:
        steps = (0, 10, 20, 40, 60, 80, 120, 160, 240, 320)
        figure = Figure("t", "x", (Series("a", 0, tuple(Value(s, 1) for s in steps)),))
        ticks = lay_out(figure).x_ticks
        assert (ticks[0].label, ticks[-1].label) == ("0", "320")
        gaps = [b.at - a.at for a, b in pairwise(ticks)]
        assert min(gaps) > 20


class TestFigures:
    def test_shows_of_each_family_the_worst(self) -> None:
        first, *_ = figures(certificate())
        assert [series.values[-1].y for series in first.series] == [1, 91]

    def test_a_loss_that_is_no_number_is_not_drawn(self) -> None:
        made = certificate()
        first = made.customers[0]
        marks = (first.marks[0].model_copy(update={"canary_loss": None}), *first.marks[1:])
        odd = first.model_copy(update={"marks": marks})
        *_, canary = figures(made.model_copy(update={"customers": (odd, *made.customers[1:])}))
        assert [value.x for value in canary.series[0].values] == [2, 4]

    def test_without_rates_to_compare_there_is_no_such_figure(self) -> None:
        made = certificate()
        assert len(figures(made)) == 4
        assert len(figures(made.model_copy(update={"rate_curves": ()}))) == 3


class TestRatioFigure:
    def test_puts_models_side_by_side_at_the_rate_with_most_shares(self) -> None:
        figure = ratio_figure([certificate("mine"), certificate("other", low=(0, 60))])
        assert figure is not None
        assert [series.label for series in figure.series] == ["mine", "other"]
        assert marks_of(figure) == [0, 10]
        assert [[value.y for value in series.values] for series in figure.series] == [
            [1, 5],
            [1, 61],
        ]
        assert all(value.low is not None for value in figure.series[0].values)
        assert "rate 0.0001" in figure.note

    def test_of_several_with_one_share_the_worst_is_drawn(self) -> None:
        made = certificate()
        twice = made.customers[1].model_copy(
            update={
                "customer": made.customers[1].customer.model_copy(update={"rows": 40}),
                "marks": made.customers[3].marks,
            }
        )
        figure = ratio_figure([made.model_copy(update={"customers": (*made.customers, twice)})])
        assert figure is not None
        assert [value.y for value in figure.series[0].values] == [1, 91]

    def test_one_share_alone_is_no_figure(self) -> None:
        made = certificate()
        assert ratio_figure([made.model_copy(update={"customers": made.customers[:1]})]) is None
        styled = made.customers[1].model_copy(
            update={"customer": made.customers[1].customer.model_copy(update={"family": "style"})}
        )
        assert ratio_figure([made.model_copy(update={"customers": (styled,)})]) is None


@pytest.mark.parametrize("has_rates", [True, False])
def test_the_picture_is_a_png(tmp_path: Path, has_rates: bool) -> None:
    made = certificate(HOSTILE)
    if not has_rates:
        made = made.model_copy(update={"rate_curves": ()})
    draw_picture(made, tmp_path / "c.png")
    content = (tmp_path / "c.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) > 20_000
