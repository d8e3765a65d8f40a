//! The page as a browser shows it: light, dark, on a phone, with the keyboard alone.

use serde_json::json;

use crate::browser::Browser;
use crate::world::World;

/// Each text with less contrast than 4.5 to what is behind it, and each thing that sticks out at the side.
const LOOK: &str = r#"(() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = colour => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); return [...paint.getImageData(0, 0, 1, 1).data]; };
    const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = element => { for (let e = element; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255, 255]; };
    const faint = [], wide = [];
    let texts = 0;
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || e.closest('.vh, svg') || !e.getClientRects().length) continue;
        texts++;
        const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) faint.push([walk.currentNode.data.slice(0, 30), e.className, contrast]);
    }
    for (const e of document.querySelectorAll('body *:not(.vh)')) {
        const box = e.getBoundingClientRect();
        if (box.width && !e.closest('.scroll') && (box.right > innerWidth + 0.5 || box.left < -0.5)) wide.push([e.tagName, e.className.baseVal ?? e.className, box.right]);
    }
    return {texts, faint: faint.slice(0, 9), wide: wide.slice(0, 9), scroll: document.documentElement.scrollWidth, width: innerWidth};
})()"#;

#[test]
fn a_browser_shows_it_light_and_dark_and_narrow_readable_and_by_keyboard() {
    let mut browser = Browser::start();
    // It has no script that could be missed.
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    let well = World::new(&["--nights", "365", "--machine", "one"]);
    let odd = World::new(&["--nights", "365", "--machine", "one", "--hostile"]);
    odd.answers("link-sync.list", |object| {
        let data = &mut object["data"];
        data["last_verify"]["ok"] = false.into();
        data["snapshots"][2]["odd"] = "a date that is to come".into();
        data["damaged"] = json!(["x".repeat(300)]);
        data["room"]["free_bytes"] = 7_000_000_000_u64.into();
    });
    let none = World::empty();
    let mut pages = Vec::new();
    for (name, world, options) in [
        ("well", &well, &[][..]),
        ("odd", &odd, &["--max-offsite-age", "1h", "--max-drill-age", "1d"]),
        ("none", &none, &[]),
    ] {
        let page = crate::world::page(world.report(options).output().unwrap());
        let at = world.path("page.html");
        std::fs::write(&at, page).unwrap();
        pages.push((name, at));
    }
    for (name, page) in &pages {
        for (width, scheme) in [(1200, "light"), (390, "dark"), (1200, "dark"), (390, "light")] {
            // (What is the same in each page was seen in the first.)
            if *name != "well" && (width, scheme) == (1200, "dark") {
                break;
            }
            browser.show(page, width, scheme);
            // All of it, what is folded as well.
            for open in [false, true] {
                browser.ask(&format!("document.querySelectorAll('details').forEach(d => d.open = {open})"));
                let look = browser.ask(LOOK);
                let what = format!("{name}, {width}, {scheme}, {open}: {look:#}");
                assert!(look["texts"].as_u64().unwrap() > 40, "{what}");
                assert_eq!((&look["faint"], &look["wide"]), (&json!([]), &json!([])), "{what}");
                assert!(look["scroll"].as_u64() <= look["width"].as_u64(), "{what}");
                if !open {
                    browser.picture(&format!("{name}-{width}-{scheme}"));
                }
            }
            let own = format!("file://{}", page.display());
            for event in &browser.events {
                let asked = event["params"]["request"]["url"].as_str().filter(|url| *url != own);
                assert!(asked.is_none(), "it asks for {event:#}");
                let method = event["method"].as_str().unwrap_or_default();
                assert!(
                    ![
                        "Log.entryAdded",
                        "Runtime.consoleAPICalled",
                        "Runtime.exceptionThrown",
                        "Network.loadingFailed"
                    ]
                    .contains(&method),
                    "{event:#}"
                );
            }
        }
    }
    let dark = browser.ask("getComputedStyle(document.body).backgroundColor");
    assert_eq!(dark, "rgb(15, 19, 25)", "the dark scheme");

    // Tab leads to each link and each fold that is seen, in their order, and they show it; Return opens one.
    browser.show(&pages[0].1, 390, "light");
    let wanted = browser
        .ask("[...document.querySelectorAll('a[href], summary')].filter(e => e.checkVisibility()).length");
    let wanted = wanted.as_u64().unwrap();
    assert!(wanted > 30, "{wanted}");
    browser.ask("window.reached = []");
    for _ in 0..wanted {
        browser.press("Tab", 9, "");
        let outline = browser.ask(
            "(() => { const e = document.activeElement; reached.push(e); return [e.matches('a[href], summary'), getComputedStyle(e).outlineStyle, e.textContent.trim()]; })()",
        );
        assert_eq!((&outline[0], &outline[1]), (&json!(true), &json!("solid")), "{outline}");
    }
    assert_eq!(browser.ask("new Set(reached).size"), wanted);
    let order = "reached.every((e, i) => !i || reached[i - 1].compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)";
    assert_eq!(browser.ask(order), true);
    browser.ask("document.querySelector('.date > summary').focus()");
    browser.press("Enter", 13, "\r");
    assert_eq!(browser.ask("document.querySelector('.date').open"), true);
}
