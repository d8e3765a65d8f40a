//! Chromium without a screen, spoken to through a pair of pipes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use testkit::scratch;

pub struct Browser {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    calls: u64,
    session: Value,
    /// What it has told of the page: errors, messages of the console, requests.
    pub events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub fn start() -> Browser {
        let profile = scratch();
        let words = "exec chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --user-data-dir=\"$1\" --remote-debugging-pipe \
            3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "300", "sh", "-c", words, "sh"]).arg(profile.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        let to = child.stdin.take();
        let mut browser = Browser {
            child,
            to,
            from,
            calls: 0,
            session: Value::Null,
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Log", "Runtime", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
        browser
    }

    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert!(bytes.pop() == Some(0), "chromium has ended, or is not here: apt-get install chromium");
        serde_json::from_slice(&bytes).unwrap()
    }

    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": parameters});
        if self.session.is_string() {
            message["sessionId"] = self.session.clone();
        }
        let to = self.to.as_mut().unwrap();
        // (A browser that is not here says so when it is read from.)
        let _ = to.write_all(format!("{message}\0").as_bytes());
        loop {
            let answer = self.read();
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    /// Shows the page, on a screen so wide, in this scheme of colours.
    pub fn show(&mut self, page: &Path, width: u32, scheme: &str) {
        let phone = width < 600;
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}),
        );
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
        self.events.clear();
        self.call("Page.navigate", json!({"url": format!("file://{}", page.display())}));
        while !self.events.iter().any(|e| e["method"] == "Page.loadEventFired") {
            let event = self.read();
            self.events.push(event);
        }
    }

    /// What an expression is in the page.
    #[track_caller]
    pub fn ask(&mut self, expression: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(answer["exceptionDetails"].is_null(), "{answer:#}");
        answer["result"]["value"].clone()
    }

    /// One key, pressed and let go.
    pub fn press(&mut self, key: &str, code: u32, text: &str) {
        let kind = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event);
        let up = json!({"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", up);
    }

    /// All of the page as a picture, into the folder that NC_BACKUP_SCREENSHOTS names, if it does: for people to look at.
    pub fn picture(&mut self, name: &str) {
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let taken = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true, "clip": clip}));
        let picture = taken["data"].as_str().unwrap();
        assert!(picture.starts_with("iVBORw0KGgo") && picture.len() > 50_000, "{name}: {}", picture.len());
        if let Some(dir) = std::env::var_os("NC_BACKUP_SCREENSHOTS") {
            let mut decode = Command::new("base64");
            decode.arg("-d").stdin(Stdio::piped());
            decode.stdout(std::fs::File::create(Path::new(&dir).join(format!("{name}.png"))).unwrap());
            let mut decode = decode.spawn().unwrap();
            decode.stdin.take().unwrap().write_all(picture.as_bytes()).unwrap();
            assert!(decode.wait().unwrap().success());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends when nobody speaks to it any more.
        self.to = None;
        let _ = self.child.wait();
    }
}
