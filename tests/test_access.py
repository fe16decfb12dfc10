"""The page for those who cannot see it or have no mouse: axe-core's rules, and the whole way by keyboard."""
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import expect

from bearclf.visitors import BUSY
from conftest import app

AXE = (files("axe_playwright_python")/"axe.min.js").read_text()  # axe-core as its npm package has it


def violations(tab):
    "What axe-core finds, less what it calls minor or moderate."
    tab.evaluate(AXE)
    found = tab.evaluate("axe.run()")
    assert found["passes"]
    return [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"] if v["impact"] in ("serious", "critical")]


@pytest.fixture(scope="module")
def asking_url(tmp_path_factory):
    "A page that keeps a log, and so asks whether it was right."
    from conftest import serving
    folder = tmp_path_factory.mktemp("log")
    with serving(*app("--log", str(folder/"bearclf.db")), folder) as process: yield process.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_axe_finds_nothing_serious(visit, asking_url, bears, tmp_path, width, scheme):
    visitor = visit(asking_url, viewport=dict(width=width, height=800), color_scheme=scheme, reduced_motion="reduce").ready()
    assert violations(visitor.tab) == []
    (tmp_path/"diary.jpg").write_text("Dear diary")
    visitor.choose(*bears, tmp_path/"diary.jpg")
    for details in visitor.tab.locator(".where summary").all(): details.click()
    question = visitor.tab.locator(".bearclf-question").first
    question.locator(".yes, select").locator("visible=true").first.wait_for()
    assert violations(visitor.tab) == []
    while (no := visitor.tab.locator(".no:visible")).count(): no.first.click()
    assert violations(visitor.tab) == []
    question.locator("select").select_option(index=1)
    question.get_by_role("button", name="Send").click()
    expect(question.locator(".noted")).to_be_visible()
    assert violations(visitor.tab) == []


def test_axe_sees_what_is_wrong(visit, page_url):
    visitor = visit(page_url).ready()
    visitor.tab.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=data:, width=50 height=50><button></button>')")
    assert {id for id, *_ in violations(visitor.tab)} >= {"image-alt", "button-name"}


def test_the_busy_page_is_accessible(chromium):
    tab = chromium.new_page()
    tab.set_content(BUSY)
    assert {id for id, *_ in violations(tab)} == {"meta-refresh"}  # on purpose: there is nothing on it that a reload takes away
    tab.close()


def test_the_whole_way_by_keyboard(visit, asking_url, bears):
    visitor = visit(asking_url).ready()
    tab, press = visitor.tab, visitor.tab.keyboard.press

    def reach(what, most=12):
        "Press Tab until `what` (a CSS selector) has the focus."
        for _ in range(most):
            press("Tab")
            if tab.evaluate("what => document.activeElement.matches(what)", what): return
        pytest.fail(f"Tab does not reach {what}")

    choosers = []
    tab.on("filechooser", lambda c: choosers.append(c))  # before the key: a busy browser may hear of the key first
    tab.locator("#rendered_cells .bearclf-upload").wait_for()  # the kernel's half is there
    tab.wait_for_timeout(500)  # and has taken over the focus, if there was one
    reach("input[type=file]")
    press("Enter")
    for _ in range(300):
        if choosers: break
        tab.wait_for_timeout(100)
    assert choosers, f"Enter opens nothing; the focus is on {tab.evaluate('document.activeElement.outerHTML.slice(0, 200)')}"
    choosers[0].set_files(str(bears[2]))
    visitor.cards(1)
    reach(".where summary")
    press("Enter")
    assert tab.locator(".where img").is_visible()
    reach(".bearclf-question .no")
    press("Enter")
    assert tab.evaluate("document.activeElement.tagName") == "SELECT"
    tab.keyboard.type("bl")  # a select takes what is typed
    reach(".pick button")
    press("Enter")
    expect(tab.locator(".noted")).to_contain_text("Noted: black. The photo is not kept.")
    assert tab.evaluate("document.activeElement.matches('.noted')")  # it is read out, and Tab goes on from here
    reach(".change")
    press("Enter")
    assert tab.evaluate("document.activeElement.matches('.yes')")
    for _ in range(20):
        press("Shift+Tab")
        if tab.evaluate("document.activeElement.matches('button.clear')"): break
    press("Enter")
    visitor.cards(0)
    expect(tab.locator(".bearclf-upload input")).to_be_focused()


def test_focus_stays_where_it_is_when_the_widgets_arrive(visit, page_url):
    visitor = visit(page_url)
    visitor.tab.locator(".bearclf-upload input").wait_for(state="attached")
    visitor.tab.keyboard.press("Tab")
    visitor.tab.locator("#rendered_cells .bearclf-upload").wait_for()
    visitor.tab.wait_for_timeout(300)
    assert visitor.tab.evaluate("document.activeElement.type") == "file"
