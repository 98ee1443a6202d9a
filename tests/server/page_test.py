"""The page of mamba-server in headless Chromium: python page_test.py MAMBA_SERVER [SCREENSHOT]"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PROGRAM = sys.argv[1]
SCREENSHOT = sys.argv[2] if len(sys.argv) > 2 else None
KEY = "a-key-of-the-second-server"
SECONDS = 15  # that anything may take: the machine may be busy
started = time.monotonic()
scratch = tempfile.TemporaryDirectory()
folder = pathlib.Path(scratch.name)
servers = []


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def until(holds, what):
    """What holds() gives, once it is true."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        value = holds()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(what + (f"; the page says {alert()!r}" if alert() else ""))


def serve(name, *flags):
    log = folder / f"{name}.log"
    with open(log, "wb") as out:
        servers.append(subprocess.Popen([PROGRAM, "--port", "0", *flags], stderr=out))
    found = until(lambda: re.search(r'"listening":"([^"]*)"', log.read_text()), f"{name} does not listen")
    return found.group(1)


def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-extensions"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


# ---- what is on the page ----


def one(id):
    return driver.find_element(By.ID, id)


def alert():
    return driver.execute_script("return (document.getElementById('alert') || {}).textContent") if driver else ""


def status():
    return driver.execute_script("return document.getElementById('status').textContent")


def text():
    return driver.execute_script("return document.getElementById('text').textContent")


def nodes():
    return driver.execute_script(
        "return [...document.querySelectorAll('#forest button')].map((node) => node.dataset.state)")


def current():
    return driver.execute_script("return document.querySelector('#forest [aria-current]')?.dataset.state")


def map_drawn():
    """The heat map as it is drawn."""
    return driver.execute_script("return document.getElementById('map').toDataURL()")


def ready():
    return driver.execute_script("return document.getElementById('go').getAttribute('aria-disabled')") == "false"


def fill(id, value):
    one(id).clear()
    one(id).send_keys(str(value))


def press(id, said=None):
    """A button, and what the page says when it is done."""
    one(id).click()
    until(ready, f"{id} is not done")
    expect(not alert(), f"{id}: {alert()}")
    if said:
        expect(re.search(said, status()), f"{id}: expected {said!r}, the page says {status()!r}")


def size(width, height, dark=False):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                           {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})


def open_page(address):
    driver.get(address + "/")
    until(lambda: ready() and (one("model").text or alert()), "the page does not begin")


def console(*expected):
    """No error on the console, but for those that the test has brought about itself."""
    bad = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    bad = [entry for entry in bad if not any(part in entry["message"] for part in expected)]
    expect(not bad, f"the console says {bad}")


# ---- the server's own word ----


def ask(address, path, body=None, key=None):
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Bearer " + key
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(address + path, data, headers)) as answer:
        return json.load(answer)


def text_of(address, id, key=None):
    return ask(address, f"/states/{id}/text", key=key)["text"]


# ---- checks ----


def write(address):
    expect(one("text").text == "", "a text before any")
    fill("prompt", "And the king said")
    fill("seed", 7)
    fill("max", 40)
    press("go", "^Done: 40 tokens with seed 7")
    expect(text().startswith("And the king said") and len(text()) == len("And the king said") + 40, "40 tokens")
    expect(text_of(address, current()) == text(), "the state has the text that is shown")
    first = ask(address, "/states", {"prompt": "And the king said"})
    again = ask(address, f"/states/{first['id']}/generate", {"max_tokens": 40, "temperature": 0.8, "seed": 7})
    expect(text() == "And the king said" + again["text"], "the text that the server writes with that seed")
    expect(len(nodes()) == 2, "the prompt's state and the one after it")
    expect(re.fullmatch(r"[\d.]+ ms", one("first").text), "time to first token")
    expect(float(one("rate").text) > 0, "tokens/s")
    expect(re.fullmatch(r"\d+ KB", one("bytes").text), "bytes of the state")
    expect(driver.execute_script("return document.getElementById('said').textContent") == text()[-40:],
           "what is written is read out")
    for one_state in ask(address, "/states")["states"]:
        if one_state["id"] not in nodes():
            driver.execute_script("fetch('/states/' + arguments[0], {method: 'DELETE'})", one_state["id"])
    return current()


def stop(address):
    fill("max", 1000000)
    one("go").click()
    until(lambda: len(text()) > 200, "a long text does not come")
    drawn = {map_drawn()}
    until(lambda: drawn.add(map_drawn()) or len(drawn) > 2, "the heat map does not change while tokens come")
    drop_file(b"", "later.safetensors")
    expect("was not uploaded" in alert(), "a file that is dropped meanwhile is not silently forgotten")
    one("stop").click()
    until(ready, "stop does not end the writing")
    expect(status().startswith("Stopped: "), f"stop: {status()!r} {alert()!r}")
    expect(text_of(address, current()) == text(), "what was stopped is a state too")
    kept = {state["id"] for state in ask(address, "/states")["states"]}
    expect(kept == set(nodes()), "states that were made to be looked into are gone")
    until(lambda: "mamba_rows_in_use 0" in metrics(address), "the server writes on after stop")


def metrics(address):
    with urllib.request.urlopen(address + "/metrics") as answer:
        return answer.read().decode()


def rewind_by_token(address, tokens):
    before, known = nodes(), text()
    driver.find_element(By.CSS_SELECTOR, f'#text [data-token="{tokens - 1}"]').click()
    expect(f"after token {tokens} " in one("point-label").text, "the point that was clicked")
    press("rewind", f"^Back after token {tokens}")
    expect(text() == known[:tokens], "the text up to the token that was clicked")
    expect(text_of(address, current()) == known[:tokens], "and its state")
    expect(len(nodes()) == len(before) + 1, "the forest has a state more")


def branch(address, whole):
    before, known = nodes(), text()
    fill("max", 40)
    fill("seed", 7)
    fill("temperature", 1.2)
    press("branch", "^Done: 40 tokens with seed 8")
    expect(len(nodes()) == len(before) + 1, "a branch is a state more")
    expect(text().startswith(known) and text() != whole, "another text from the same point")
    states = {state["id"]: state for state in ask(address, "/states")["states"]}
    parents = [state["parent"] for state in states.values()]
    expect(any(parents.count(parent) > 1 for parent in states), "the forest has a fork")
    lines = driver.find_elements(By.CSS_SELECTOR, "#forest path")
    expect(len(lines) == sum(parent in states for parent in parents), "a line from each state to its parent")


def choose_node(address, id):
    driver.find_element(By.CSS_SELECTOR, f'#forest [data-state="{id}"]').click()
    until(lambda: ready() and current() == id, "a node of the forest is chosen")
    expect(text() == text_of(address, id), "its text is shown")
    before = text()
    fill("max", 10)
    press("go", "^Done: 10 tokens")
    expect(len(text()) == len(before) + 10 and text().startswith(before), "it goes on")


def difference(address, other):
    driver.execute_script("""const select = document.getElementById('other'); select.value = arguments[0];
                             select.dispatchEvent(new Event('change'))""", other)
    until(lambda: one("diff-figure").is_displayed(), "the difference is not shown")
    server = ask(address, f"/states/{current()}/diff/{other}")["layers"]
    shown = driver.execute_script("return [...document.querySelectorAll('#layers tbody tr')].map((row) => row.cells[4].textContent)")
    expect([float(value) for value in shown] == [float(f"{one['ssm']:.3g}") for one in server], "distances by layer")
    before = map_drawn()
    driver.find_element(By.CSS_SELECTOR, '#layers [aria-label="Map of layer 5"]').click()
    until(lambda: one("map-said").text.startswith("Layer 5") and map_drawn() != before, "the map of another layer")


def escaped(address):
    evil = "<img src=x onerror=document.title=1><script>document.title=2</script>&amp;"
    press("new")
    fill("prompt", evil)
    fill("max", 1)
    press("go")
    expect(text()[:-1] == evil, "a text with tags is a text")
    expect(not driver.find_elements(By.CSS_SELECTOR, "#text img, #text script"), "and nothing else")
    expect(driver.title == "mamba-server", "its script does not run")


def guarded(address):
    with urllib.request.urlopen(address + "/") as answer:
        policy = answer.headers["Content-Security-Policy"]
    rest = re.sub("'sha256-[^']*'", "", policy)  # whose base64 may have any letters
    expect(not re.search(r"unsafe|[*]|http|//|nonce", rest), f"a strict policy, not {policy}")
    expect("default-src 'none'" in policy and "connect-src 'self'" in policy, f"nothing from elsewhere: {policy}")
    said = driver.execute_script("try { document.body.innerHTML += ''; } catch (error) { return error.message; }")
    expect(said and "TrustedHTML" in said, "innerHTML is refused")
    said = driver.execute_script("""
      try { document.createElement('b').setAttribute('onclick', 'document.title = 3'); } catch (error) { return error.message; }""")
    expect(said and "TrustedScript" in said, "a script in an attribute is refused")
    console("Trusted")


def refused():
    fill("temperature", -1)
    one("go").click()
    until(alert, "a refusal is not shown")
    expect(alert().startswith("422: temperature"), f"the server's message, got {alert()!r}")
    fill("temperature", 0.8)


def keyboard(address):
    """From the top of the page to a branch, without a mouse."""
    driver.get(address + "/")
    until(lambda: ready() and nodes(), "the page does not begin")
    tab_order, elements = [], []
    for _ in range(60):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = driver.switch_to.active_element
        name = focused.get_attribute("id") or focused.get_attribute("data-state") or focused.tag_name
        if focused.tag_name == "body" or focused in elements:
            break
        outline = driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
        expect(outline != "none", f"focus is seen on {name}")
        tab_order.append(name)
        elements.append(focused)
    else:
        raise AssertionError(f"the focus does not come out of the page: {tab_order}")
    for wanted in ("prompt", "temperature", "go", "stop", "text", "point", "rewind", "branch", "download", "upload", "other"):
        expect(wanted in tab_order, f"{wanted} is reached with Tab, of {tab_order}")
    expect(sum(name in nodes() for name in tab_order) == 1, "the forest is one stop of Tab")

    prompt = one("prompt")
    prompt.clear()
    prompt.send_keys("In the beginning")
    one("max").clear()
    one("max").send_keys("20")
    one("seed").clear()
    one("seed").send_keys("3", Keys.ENTER)
    until(lambda: ready() and "Done: 20 tokens" in status(), "Enter writes")
    point = one("point")
    point.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    label = point.get_attribute("aria-valuetext")
    expect(label.startswith("after token 34 of 36: "), f"the point says where it is, not {label!r}")
    one("rewind").send_keys(Keys.ENTER)
    until(lambda: ready() and len(text()) == 34, "Enter rewinds")
    expect(driver.switch_to.active_element.get_attribute("id") == "rewind", "the focus stays")
    one("branch").send_keys(Keys.SPACE)
    until(lambda: ready() and "Done: 20 tokens with seed 4" in status(), "Space branches")
    node = driver.find_element(By.CSS_SELECTOR, "#forest [aria-current]")
    node.send_keys(Keys.ARROW_LEFT)
    focused = driver.switch_to.active_element
    expect(focused.get_attribute("data-state") not in (None, current()), "the arrows move in the forest")
    focused.send_keys(Keys.ENTER)
    until(lambda: ready() and len(text()) == 34, "Enter chooses a node")
    one("max").clear()
    one("max").send_keys("1000000", Keys.ENTER)
    until(lambda: len(text()) > 100, "a long text does not come")
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(lambda: ready() and status().startswith("Stopped"), "Escape stops")


def named():
    """Everything that can be used has a name, and text is of enough contrast."""
    nameless = driver.execute_script("""
      return [...document.querySelectorAll('button, input:not([hidden]), select, textarea, summary, [tabindex], canvas')].filter(
        (element) => !(element.textContent.trim() && element.tagName !== 'SELECT' && element.tagName !== 'TEXTAREA')
          && !element.getAttribute('aria-label') && !element.getAttribute('aria-labelledby')
          && !(element.labels && element.labels.length)).map((element) => element.outerHTML)""")
    expect(not nameless, f"names of {nameless}")
    for dark in (False, True):
        size(1280, 900, dark)
        poor = driver.execute_script("""
          const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const light = (colour) => parts(colour).slice(0, 3).map((c) => c / 255).map(
            (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = (element) => {
            for (; element; element = element.parentElement) {
              const colour = getComputedStyle(element).backgroundColor;
              if ((parts(colour)[3] ?? 1) > 0) return colour;
            }
          };
          return [...document.querySelectorAll('h1, h2, label, button, dt, dd, th, td, summary, figcaption, #text span, #status, #model')].filter(
            (element) => element.checkVisibility() && element.textContent.trim() && element.getAttribute('aria-disabled') !== 'true').map((element) => {
              const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
              return [(pair[0] + 0.05) / (pair[1] + 0.05), element.outerHTML.slice(0, 80)];
            }).filter(([ratio]) => ratio < 4.5)""")
        expect(not poor, f"contrast {'in the dark' if dark else 'in the light'}: {poor[:3]}")


def narrow():
    for width in (360, 1920):
        size(width, 800)
        wide = driver.execute_script("""
          return [document.documentElement.scrollWidth, innerWidth,
            ...[...document.querySelectorAll('button, input, select, textarea, canvas, h2')].filter(
              (element) => element.checkVisibility() && !element.closest('.wide, #forest, .unseen')
                && element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML)]""")
        expect(wide[0] <= wide[1] == width and len(wide) == 2, f"{width} px are enough: {wide}")
    size(1280, 900)


def download():
    name = folder / f"{current()}.safetensors"
    press("download", "^Downloaded ")
    until(lambda: name.exists() and name.stat().st_size > 100000, "the file does not come")
    return name


def drop_file(data, name):
    driver.execute_script("""
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(arguments[0])], arguments[1]));
      for (const type of ['dragover', 'drop']) {
        window.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
      }""", list(data), name)


def elsewhere(address, file, known):
    """The file goes on in the page of a server that has not seen its text, and asks for a key."""
    open_page(address)
    expect(alert().startswith("401: "), f"a key is asked for, got {alert()!r}")
    one("key").send_keys(KEY, Keys.ENTER)
    until(lambda: one("model").text, "the key is not used")
    expect(driver.execute_script("return localStorage.length") == 0, "the key stays in this tab")
    console("401", "favicon")

    drop_file(b"not a state", "wrong.safetensors")
    until(lambda: ready() and alert().startswith("422: "), "what is no state is refused with the server's message")
    expect(not nodes(), "and is not kept")
    console("422")
    one("file").send_keys(str(file))
    until(lambda: ready() and nodes() and status().startswith("Uploaded"), "a file that is chosen is uploaded")
    expect(text() == known, "with its text")
    drop_file(file.read_bytes(), file.name)
    until(lambda: ready() and len(nodes()) == 2, "a file that is dropped is uploaded")
    fill("max", 30)
    fill("seed", 5)
    press("go", "^Done: 30 tokens")
    expect(text().startswith(known) and len(text()) == len(known) + 30, "it goes on here")
    expect(text_of(address, current(), KEY) == text(), "in a state of this server")
    rewound = len(known) - 5
    driver.find_element(By.CSS_SELECTOR, f'#text [data-token="{rewound - 1}"]').click()
    press("rewind", f"^Back after token {rewound}")
    console()


def picture(address):
    driver.delete_all_cookies()
    open_page(address)
    size(1280, 860)
    press("new")
    fill("prompt", "And the king said unto the prophet,")
    fill("temperature", 0.7)
    fill("max", 260)
    fill("seed", 11)
    press("go")
    for tokens in (150, 90, 200, 60):
        driver.find_element(By.CSS_SELECTOR, f'#text [data-token="{tokens - 1}"]').click()
        press("branch")
    driver.execute_script("const select = document.getElementById('other'); select.selectedIndex = 2;"
                          "select.dispatchEvent(new Event('change'))")
    until(lambda: one("diff-figure").is_displayed(), "the difference is not shown")
    driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    time.sleep(0.3)
    driver.save_screenshot(SCREENSHOT)


driver = None
try:
    (folder / "keys").write_text(KEY + "\n")
    here = serve("here")
    there = serve("there", "--api-key-file", str(folder / "keys"))
    driver = browser()
    size(1280, 900)
    if SCREENSHOT:
        picture(here)
        sys.exit()
    open_page(here)
    written = write(here)
    stop(here)
    choose_node(here, written)
    whole = text()
    rewind_by_token(here, 30)
    branch(here, whole)
    difference(here, written)
    file, known = download(), text()
    narrow()
    named()
    escaped(here)
    console()
    guarded(here)
    keyboard(here)
    console()
    refused()
    console("422")
    elsewhere(there, file, known)
    print(f"page: written, stopped, rewound, branched, and gone on elsewhere; {time.monotonic() - started:.0f} s")
finally:
    if driver:
        driver.quit()
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait()
    scratch.cleanup()
