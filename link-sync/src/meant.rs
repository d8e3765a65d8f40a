//! Which snapshot a date on the command line means: asked of the store once, so that whatever comes next is about a whole date.

use anyhow::Result;
use common::dates::{self, is_date};
use common::status;
use jiff::Timestamp;
use serde_json::Value;

use crate::far::Far;
use crate::list;
use crate::store::Store;
use crate::store::odd::Known;

/// The date that `wanted` means in the store of `far`. The far end sees no other one.
pub fn at(far: &mut Far, wanted: &str) -> Result<String> {
    if is_date(wanted) {
        return Ok(wanted.to_owned());
    }
    let answer = list::ask(far, false)?;
    of(&answer, wanted, &far.hello.store)
}

/// The same among the dates of a list that has come already, of the store `place`.
pub fn of(answer: &Value, wanted: &str, place: &str) -> Result<String> {
    let odd: Vec<&str> = answer["odd"].as_array().into_iter().flatten().filter_map(|d| d.as_str()).collect();
    let all = answer["snapshots"].as_array().into_iter().flatten();
    let known = all.filter_map(|s| s["date"].as_str()).filter(|date| is_date(date));
    one(wanted, known.map(|date| (date, odd.contains(&date))), place)
}

/// The same in a local store.
pub fn here(store: &Store, wanted: &str) -> Result<String> {
    if is_date(wanted) {
        return Ok(wanted.to_owned());
    }
    let known = Known::of(store, Timestamp::now())?;
    let counted = known.counted.iter().map(|meta| (&*meta.date, false));
    let odd = known.odd.iter().map(|(meta, _)| (&*meta.date, true));
    one(wanted, counted.chain(odd), &store.path.display().to_string())
}

/// What is odd is not the latest, though its date may be meant.
fn one<'a>(wanted: &str, known: impl Iterator<Item = (&'a str, bool)>, place: &str) -> Result<String> {
    let mut dates: Vec<String> =
        known.filter(|(_, odd)| !odd || wanted != "latest").map(|(date, _)| date.to_owned()).collect();
    dates.sort_unstable();
    let date = dates::resolve(wanted, &dates, "snapshot", place)?;
    if wanted != "latest" {
        status::tell(format_args!("link-sync: '{wanted}' is {date}"));
    }
    Ok(date)
}
