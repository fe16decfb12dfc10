"""A visitor of the page: one tab of a real Chromium."""
import base64
from urllib.parse import urlsplit

from playwright.sync_api import expect

WAIT = 60_000  # milliseconds
# The ipywidgets 7 stack logs this one itself, when JupyterLab extensions made for a newer JupyterLab than Voilà's are installed beside it.
KNOWN_ERROR = "The getter for the shared module is not a function"


class Visitor:
    "One browser tab that remembers what went wrong and whom it asked."
    def __init__(self, chromium, url, **context):
        self.context = chromium.new_context(**context)
        self.tab = self.context.new_page()
        self.errors, self.asked, self.frames = [], [], []
        self.tab.on("console", lambda m: m.type == "error" and KNOWN_ERROR not in m.text and self.errors.append(m.text))
        self.tab.on("pageerror", lambda e: self.errors.append(str(e)))
        self.tab.on("request", lambda r: self.asked.append(r.url))
        self.tab.on("websocket", lambda ws: ws.on("framereceived", lambda data: self.frames.append(data)))
        self.tab.goto(url, timeout=WAIT)

    def ready(self):
        self.tab.wait_for_selector(".bearclf-upload input", state="attached", timeout=WAIT)
        return self

    def cards(self, n):
        "The words of the cards, newest first, once there are `n`."
        expect(self.tab.locator(".bearclf .card")).to_have_count(n, timeout=WAIT)
        return self.tab.locator(".bearclf .card .words").evaluate_all("all => all.map(e => e.lastChild.textContent)")

    def choose(self, *files):
        self.tab.set_input_files(".bearclf-upload input", [str(f) for f in files])
        return self.cards(len(files))

    def status(self, text):
        expect(self.tab.locator(".bearclf-upload .status")).to_contain_text(text, timeout=WAIT)

    def event(self, name, files):
        "Dispatch a drop or a paste of `files` on the middle of the upload widget."
        data = [(f.name, base64.b64encode(f.read_bytes()).decode()) for f in files]
        self.tab.evaluate("""([name, files]) => {
            const carried = new DataTransfer()
            for (const [title, b64] of files) carried.items.add(new File([Uint8Array.from(atob(b64), c => c.charCodeAt(0))], title, {type: 'image/png'}))
            const init = {bubbles: true, cancelable: true}
            const event = name === 'paste' ? new ClipboardEvent(name, {...init, clipboardData: carried}) : new DragEvent(name, {...init, dataTransfer: carried})
            document.querySelector('.bearclf-upload').dispatchEvent(event)
        }""", [name, data])

    def leave(self):
        self.context.close()
        hosts = {urlsplit(u).hostname for u in self.asked if not u.startswith(("data:", "blob:"))}
        assert hosts == {"localhost"}, "the page asked another machine"
        assert not self.errors, f"the browser's console has errors: {self.errors}"
