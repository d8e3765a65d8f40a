//! Frames and lists: one byte for the kind, four for the length (big-endian), then the payload.
//!
//! Whatever the other end says, what is kept of it is bounded: a frame by its kind, a request by [`MAX_REQUEST`], an item
//! of a list by the frame it is in, and what a whole list makes the far end remember by [`Kept`].

use std::io::{Read, Write};

use anyhow::{Context as _, Result, bail};
use common::fault::Fault;
use common::mutant;
use serde::Serialize;
use serde_json::Value;

use crate::store::merge::Listed;
use crate::store::meta::LONGEST;
use crate::store::reuse::Claim;

/// The largest payload, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;
/// The largest request: a description of a snapshot, as JSON within JSON.
pub const MAX_REQUEST: usize = 2 * LONGEST + (64 << 10);
/// The largest answer.
pub const MAX_ANSWER: usize = 64 * MAX_FRAME;
/// The longest list, in bytes: a line for each of a hundred million paths.
const MAX_LIST: u64 = 16 << 30;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A request or a [`super::Reply`].
    Message,
    /// One part of a long answer (JSON); the reply that ends it follows.
    Item,
    /// A piece of a list of records; an empty one ends the list.
    List,
    /// A piece of rsync's conversation.
    Stream,
    /// This direction of rsync's conversation has ended.
    End,
    /// How far the far end has come, eight bytes (big-endian), and of how much, eight more where that is known: while
    /// it copies from another store, hashes, or verifies.
    Count,
    /// Nothing but a sign of life: the far end sends one every second while it works on a request.
    Alive,
}

/// The letter of each kind.
const KINDS: [(Frame, u8); 7] = [
    (Frame::Message, b'M'),
    (Frame::Item, b'I'),
    (Frame::List, b'L'),
    (Frame::Stream, b'S'),
    (Frame::End, b'E'),
    (Frame::Count, b'C'),
    (Frame::Alive, b'A'),
];

/// How much of what lists said may be remembered.
#[derive(Debug)]
pub struct Kept {
    most: u64,
    left: u64,
}

impl Kept {
    /// At most so many bytes.
    pub fn at_most(most: u64) -> Kept {
        Kept { most, left: most }
    }

    /// So many bytes more are remembered from now on.
    pub fn more(&mut self, bytes: usize) -> Result<()> {
        self.left = self.left.saturating_sub(bytes as u64);
        if self.left > 0 || mutant::active("door-remembers-everything") {
            return Ok(());
        }
        Err(Fault::denied(format!("the list is too long: it takes more than {} bytes of memory here", self.most))
            .hint("if so many paths really changed at once, give `link-sync serve` on the store's machine --max-memory")
            .into())
    }
}

/// Writes one frame; `payload` is at most [`MAX_FRAME`] long.
pub fn send(out: &mut impl Write, kind: Frame, payload: &[u8]) -> std::io::Result<()> {
    let mut head = [0u8; 5];
    head[0] = KINDS.iter().find(|(k, _)| *k == kind).map_or(0, |(_, letter)| *letter);
    head[1..].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.write_all(&head)?;
    out.write_all(payload)
}

/// Reads one frame into `payload`; `None` at the end of the input. A message or an item is at most `most` bytes long.
pub fn receive(input: &mut impl Read, payload: &mut Vec<u8>, most: usize) -> Result<Option<Frame>> {
    let mut head = [0u8; 5];
    match input.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => input.read_exact(&mut head[1..])?,
    }
    let Some((kind, _)) = KINDS.iter().find(|(_, letter)| *letter == head[0]) else {
        bail!("the other end sent a frame of kind {}: it does not speak this protocol", head[0]);
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let limit = if matches!(kind, Frame::Message | Frame::Item) { most } else { MAX_FRAME };
    if len > limit && !mutant::active("frames-of-any-size") {
        bail!("the other end sent a frame of {len} bytes, and {limit} are the most");
    }
    if payload.capacity() > MAX_FRAME && len <= MAX_FRAME {
        // What one long message took is not kept for the short ones.
        *payload = Vec::new();
    }
    payload.resize(len, 0);
    input.read_exact(payload)?;
    Ok(Some(*kind))
}

/// Sends a message.
pub fn send_message(out: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(message).context("cannot encode a message")?;
    send(out, Frame::Message, &text)?;
    out.flush()?;
    Ok(())
}

/// Sends one part of a long answer.
pub fn send_item(out: &mut impl Write, item: &Value) -> Result<()> {
    let text = serde_json::to_vec(item).context("cannot encode an answer")?;
    send(out, Frame::Item, &text)?;
    out.flush()?;
    Ok(())
}

/// Collects records and sends them in frames.
#[derive(Debug)]
pub struct ListWriter<'a, W: Write> {
    out: &'a mut W,
    buffer: Vec<u8>,
}

impl<'a, W: Write> ListWriter<'a, W> {
    /// A list on `out`.
    pub fn new(out: &'a mut W) -> ListWriter<'a, W> {
        ListWriter { out, buffer: Vec::with_capacity(MAX_FRAME) }
    }

    /// Adds a path.
    pub fn path(&mut self, path: &[u8]) -> Result<()> {
        self.bytes(path)
    }

    /// Adds a record.
    pub fn record(&mut self, kind: u32, size: u64, mtime: (i64, u32), path: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(24 + path.len());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&mtime.0.to_le_bytes());
        bytes.extend_from_slice(&mtime.1.to_le_bytes());
        bytes.extend_from_slice(path);
        self.bytes(&bytes)
    }

    /// Adds what is claimed of a file.
    pub fn claim(&mut self, claim: &Claim) -> Result<()> {
        let mut bytes = Vec::with_capacity(56 + claim.old.len() + claim.path.len());
        bytes.extend_from_slice(&claim.sum);
        bytes.extend_from_slice(&claim.size.to_le_bytes());
        bytes.extend_from_slice(&claim.mtime.0.to_le_bytes());
        bytes.extend_from_slice(&claim.mtime.1.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(claim.old.len()).context("a path is too long")?.to_le_bytes());
        bytes.extend_from_slice(&claim.old);
        bytes.extend_from_slice(&claim.path);
        self.bytes(&bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + 4 + bytes.len() > MAX_FRAME {
            send(self.out, Frame::List, &self.buffer)?;
            self.buffer.clear();
        }
        let len = u32::try_from(bytes.len()).context("a path is too long")?;
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends the rest and the end of the list.
    pub fn finish(self) -> Result<()> {
        if !self.buffer.is_empty() {
            send(self.out, Frame::List, &self.buffer)?;
        }
        send(self.out, Frame::List, &[])?;
        self.out.flush()?;
        Ok(())
    }
}

/// Reads a list and gives each item to `each`. The whole list is read even if `each` fails; its first
/// error is returned then, so that the conversation stays in step.
pub fn read_list(input: &mut impl Read, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (mut frame, mut bytes) = (Vec::new(), 0u64);
    let mut outcome = Ok(());
    loop {
        match receive(input, &mut frame, 0)? {
            Some(Frame::List) if frame.is_empty() => return outcome,
            Some(Frame::List) => {}
            _ => bail!("the other end broke off in the middle of a list"),
        }
        bytes += frame.len() as u64;
        if bytes > MAX_LIST {
            bail!("a list of more than {MAX_LIST} bytes");
        }
        let mut rest = &frame[..];
        while !rest.is_empty() && outcome.is_ok() {
            let (item, tail) = split_item(rest).context("the other end sent a broken list")?;
            rest = tail;
            outcome = each(item);
        }
    }
}

fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// Decodes one record of a list.
pub fn listed(item: &[u8]) -> Result<Listed> {
    let decode = || -> Option<Listed> {
        let (kind, rest) = item.split_first_chunk::<4>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (sec, rest) = rest.split_first_chunk::<8>()?;
        let (nsec, path) = rest.split_first_chunk::<4>()?;
        Some(Listed {
            kind: u32::from_le_bytes(*kind),
            size: u64::from_le_bytes(*size),
            mtime: (i64::from_le_bytes(*sec), u32::from_le_bytes(*nsec)),
            path: path.to_vec(),
        })
    };
    decode().context("the other end sent a broken record")
}

/// Decodes what is claimed of a file.
pub fn claimed(item: &[u8]) -> Result<Claim> {
    let decode = || -> Option<Claim> {
        let (sum, rest) = item.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (sec, rest) = rest.split_first_chunk::<8>()?;
        let (nsec, rest) = rest.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (old, path) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        Some(Claim {
            sum: *sum,
            size: u64::from_le_bytes(*size),
            mtime: (i64::from_le_bytes(*sec), u32::from_le_bytes(*nsec)),
            old: old.to_vec(),
            path: path.to_vec(),
        })
    };
    decode().context("the other end sent a broken claim")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_any_bytes_and_many_frames() {
        let paths: Vec<Vec<u8>> = (0..20_000u32).map(|n| format!("a\n\u{fc}/{n}/").into_bytes()).collect();
        let mut wire = Vec::new();
        let mut list = ListWriter::new(&mut wire);
        for path in &paths {
            list.record(7, 8, (-9, 10), path).unwrap();
        }
        list.finish().unwrap();
        let mut back = Vec::new();
        read_list(&mut &wire[..], |item| {
            back.push(listed(item)?);
            Ok(())
        })
        .unwrap();
        assert_eq!(back.len(), paths.len());
        assert_eq!(back[77], Listed { kind: 7, size: 8, mtime: (-9, 10), path: paths[77].clone() });
    }

    #[test]
    fn claims_survive_and_broken_ones_are_refused() {
        let claim = Claim {
            sum: [7; 32],
            size: 1 << 40,
            mtime: (-9, 10),
            old: b"a/\xff".to_vec(),
            path: b"b\n".to_vec(),
        };
        let mut wire = Vec::new();
        let mut list = ListWriter::new(&mut wire);
        list.claim(&claim).unwrap();
        list.finish().unwrap();
        read_list(&mut &wire[..], |item| {
            assert_eq!(claimed(item)?, claim);
            assert!(claimed(&item[..40]).is_err());
            let mut long = item.to_vec();
            long[52..56].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(claimed(&long).is_err(), "a path longer than all of it");
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_list_is_read_to_its_end_although_an_item_fails() {
        let mut wire = Vec::new();
        let mut list = ListWriter::new(&mut wire);
        list.path(b"bad").unwrap();
        list.path(b"good").unwrap();
        list.finish().unwrap();
        send(&mut wire, Frame::End, b"").unwrap();
        let mut input = &wire[..];
        assert!(read_list(&mut input, |_| bail!("no")).is_err());
        assert_eq!(receive(&mut input, &mut Vec::new(), 0).unwrap(), Some(Frame::End));
    }
}
