//! Chromium, without a window, opens the page that `bulkhead console --web` names, logs in by keys and looks.
//!
//! It is driven by the DevTools protocol (Page, Input, Runtime) through two pipes: JSON, each message ends with a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::job::Doors;
use crate::scenarios::picture;
use crate::{apt, sh};

/// For a step of the guest's, which runs under two layers of emulation.
const LIMIT: Duration = Duration::from_secs(60);
/// For the page and its connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn ready() -> Result<bool> {
    apt::ensure(&["chromium"])?;
    Ok(true)
}

pub(super) fn visit(doors: &Doors) -> Result<String> {
    let said = doors.said.text();
    let url = said
        .lines()
        .filter_map(|line| line.strip_prefix("web: "))
        .next_back()
        .context("no address was printed")?;
    let rest = url.trim().strip_prefix("http://127.0.0.1:").context("a strange address")?;
    let path = rest.split_once('/').context("a strange address")?.1;

    let mut browser = Browser::start(&doors.directory)?;
    browser.call("Page.enable", json!({}))?;
    browser.call("Page.navigate", json!({ "url": format!("http://127.0.0.1:{}/{path}", doors.web) }))?;
    browser.wait_until("document.documentElement.classList.contains('noVNC_connected')", CONNECT_LIMIT)?;
    browser.wait_until("document.querySelector('canvas').width >= 800", CONNECT_LIMIT)?;
    browser.evaluate("document.querySelector('canvas').focus()")?;

    browser.type_text("root\n")?;
    doors.said.wait_for("login: in", LIMIT)?;
    browser.type_text("echo in a browser > /run/typed\n")?;
    doors.said.wait_for("typed: ", LIMIT)?;
    for (kind, button) in [("mouseMoved", "none"), ("mousePressed", "right"), ("mouseReleased", "right")] {
        let buttons = if kind == "mousePressed" { 2 } else { 0 };
        let event = json!({ "type": kind, "x": 400, "y": 300, "button": button, "buttons": buttons, "clickCount": 1 });
        browser.call("Input.dispatchMouseEvent", event)?;
        std::thread::sleep(Duration::from_millis(300));
    }
    browser.call(
        "Input.dispatchMouseEvent",
        json!({ "type": "mouseWheel", "x": 420, "y": 320, "deltaX": 0, "deltaY": 200 }),
    )?;
    doors.said.wait_for("mouse: ", LIMIT)?;

    let path = picture::directory("screen-web")?.join("chromium.png");
    browser.screenshot(&path)?;
    picture::shows_text(&path)?;
    let size = browser.evaluate("(c => c.width + ' x ' + c.height)(document.querySelector('canvas'))")?;
    Ok(format!("Chromium: typed and saw {}", size.as_str().unwrap_or("nothing")))
}

struct Browser {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
}

impl Browser {
    fn start(directory: &Path) -> Result<Self> {
        let log = std::fs::File::create(directory.join("chromium.log"))?;
        // It reads orders from descriptor 3 and answers on 4.
        let mut child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "sh",
                "-c",
                "exec chromium \"$@\" 3<&0 4>&1 0</dev/null 1>&2",
                "sh",
            ])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"])
            .args(["--no-first-run", "--window-size=1200,900", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", directory.join("profile").display()))
            .arg("about:blank")
            .env("HOME", directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting Chromium")?;
        let orders = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut browser = Self { child, orders, answers, session: None, number: 0 };
        let targets = browser.call("Target.getTargets", json!({}))?;
        let page = targets["targetInfos"]
            .as_array()
            .and_then(|all| all.iter().find(|target| target["type"] == "page"))
            .context("Chromium has no page")?;
        let attached = browser
            .call("Target.attachToTarget", json!({ "targetId": page["targetId"], "flatten": true }))?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        ensure!(browser.session.is_some(), "Chromium gives no session");
        Ok(browser)
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let mut order = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            order["sessionId"] = json!(session);
        }
        self.orders.write_all(format!("{order}\0").as_bytes()).context("Chromium does not listen")?;
        self.orders.flush()?;
        loop {
            let mut answer = Vec::new();
            self.answers.read_until(0, &mut answer)?;
            ensure!(answer.pop() == Some(0), "Chromium ended during {method}");
            let mut answer: Value = serde_json::from_slice(&answer).context("Chromium's answer")?;
            if answer["id"] == self.number {
                if let Some(error) = answer.get("error") {
                    bail!("Chromium refuses {method}: {error}");
                }
                return Ok(answer["result"].take());
            }
        }
    }

    fn evaluate(&mut self, script: &str) -> Result<Value> {
        let mut result =
            self.call("Runtime.evaluate", json!({ "expression": script, "returnByValue": true }))?;
        Ok(result["result"]["value"].take())
    }

    fn wait_until(&mut self, condition: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.evaluate(condition)? != json!(true) {
            if start.elapsed() > limit {
                let page =
                    self.evaluate("document.documentElement.className + ': ' + document.body.innerText")?;
                bail!("not within {} s: {condition}; the page: {page}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn type_text(&mut self, text: &str) -> Result<()> {
        for letter in text.chars() {
            let (key, code, text) = match letter {
                '\n' => ("Enter".to_owned(), 13, "\r".to_owned()),
                other => (other.to_string(), 0, other.to_string()),
            };
            let shift = u8::from(letter == '>') * 8;
            let code_name = if letter == '\n' { "Enter" } else { "" };
            for kind in ["keyDown", "keyUp"] {
                let mut event = json!({ "type": kind, "key": key, "code": code_name, "windowsVirtualKeyCode": code,
                    "modifiers": shift });
                if kind == "keyDown" {
                    event["text"] = json!(text);
                }
                self.call("Input.dispatchKeyEvent", event)?;
                std::thread::sleep(Duration::from_millis(40));
            }
        }
        Ok(())
    }

    fn screenshot(&mut self, path: &Path) -> Result<()> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let data = picture["data"].as_str().context("Chromium gives no picture")?;
        let mut decode = Command::new("base64")
            .arg("--decode")
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(path)?)
            .spawn()
            .context("starting base64")?;
        decode.stdin.take().context("no pipe")?.write_all(data.as_bytes())?;
        ensure!(decode.wait()?.success(), "base64 failed");
        sh::say(&format!("a picture: {}", path.display()));
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
