"""A notebook in a real JupyterLab, used by mouse and keyboard."""
import json
import re
import sys
from contextlib import suppress

from conftest import free_port
from playwright.sync_api import expect

WAIT = 60_000  # milliseconds


def notebook(path, *cells):
    "Write a notebook of code `cells`."
    kernel = dict(name="python3", display_name="Python 3", language="python")
    body = [dict(cell_type="code", id=f"c{i}", metadata={}, source=source, outputs=[], execution_count=None) for i, source in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=body, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))


def lab(folder):
    "JupyterLab's command and address; it remembers nothing of another test."
    port = free_port()
    return [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--port", str(port), "--ServerApp.root_dir", str(folder), "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--LabApp.workspaces_dir={folder}/.lab", f"--LabApp.user_settings_dir={folder}/.lab"], f"http://localhost:{port}/lab"


class Lab:
    "One tab with one notebook."
    def __init__(self, chromium, url, name):
        self.context = chromium.new_context(viewport=dict(width=1300, height=1000))
        self.tab = self.context.new_page()
        self.errors = []
        self.tab.on("pageerror", lambda e: self.errors.append(str(e)))
        self.tab.goto(f"{url}/tree/{name}", timeout=WAIT)
        self.cell(0).wait_for(timeout=WAIT)
        expect(self.tab.locator('#jp-main-statusbar')).to_contain_text('| Idle', timeout=WAIT)

    def cell(self, i): return self.tab.locator(".jp-CodeCell").nth(i)

    def run(self, i):
        "Run a cell, and wait until it has ended."
        self.cell(i).locator(".cm-content").click()
        self.tab.keyboard.press("Control+Enter")
        prompt = self.cell(i).locator(".jp-InputPrompt")
        with suppress(AssertionError): expect(prompt).to_have_text("[*]:", timeout=1000)  # unless it is quicker than one can look
        expect(prompt).to_have_text(re.compile(r"\[\d+\]"), timeout=WAIT)

    def restart(self):
        "Restart the kernel, as from the menu."
        self.tab.locator(".lm-MenuBar-itemLabel", has_text="Kernel").click()
        self.tab.locator(".lm-Menu-itemLabel", has_text=re.compile("^Restart Kernel…")).first.click()
        self.tab.locator(".jp-Dialog button", has_text="Restart").click()
        self.tab.wait_for_timeout(2000)
        expect(self.tab.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=WAIT)

    def said(self, i): return self.cell(i).locator(".jp-OutputArea-output").last.inner_text().strip()
