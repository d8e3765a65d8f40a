//! LUKS headers: what one says, and whether that is encryption we believe in.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use serde_json::Value;

use crate::cryptsetup::Cryptsetup;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) uuid: String,
    pub(crate) luks_version: u32,
    /// Like `aes-xts-plain64`.
    pub(crate) cipher: String,
    pub(crate) sector_size: u64,
    pub(crate) key_bytes: u64,
    /// Where the encrypted data begins in the image, in bytes.
    pub(crate) data_offset: u64,
    /// The key slots in use.
    pub(crate) key_slots: Vec<u32>,
    /// No key slot holds the volume key in clear, so that any key would open it, with a volume key of somebody's choice.
    pub(crate) slots_encrypt: bool,
}

/// The size of a LUKS1 header without its key slots' material: what is compared with the image.
const LUKS1_BYTES: usize = 1024;
/// The two LUKS2 headers as cryptsetup makes them by default, and we do.
const LUKS2_BYTES: usize = 32 << 10;

impl Header {
    /// Reads the header in the local file `path`.
    pub(crate) fn read(cryptsetup: &Cryptsetup, path: &Path) -> Result<Header> {
        let start = start_of(path)?;
        match version(&start) {
            Some(1) => luks1(&start),
            Some(2) => luks2(&cryptsetup.json_metadata(path)?, cryptsetup.uuid(path)?),
            _ => None,
        }
        .ok_or_else(|| {
            let what = format!("{} holds no LUKS header of a kind known here", path.display());
            Fault::config(what)
                .hint("a plain LUKS1 or LUKS2 container is needed: no integrity, no reencryption under way")
                .into()
        })
    }

    /// An error unless the cipher is one that is known to be strong.
    pub(crate) fn strong(&self) -> Result<()> {
        let (cipher, mode) = self.cipher.split_once('-').unwrap_or((&self.cipher, ""));
        let known = ["aes", "serpent", "twofish", "camellia"].contains(&cipher);
        let least = match mode {
            "xts-plain64" | "xts-plain" => 32,
            "cbc-essiv:sha256" => 16,
            _ => u64::MAX,
        };
        if !self.slots_encrypt && !common::mutant::active("any-key-slot") {
            let what = "a key slot of its header does not encrypt: any key opens it";
            return Err(Fault::config(what).hint("somebody made this header; make a new container").into());
        }
        if known && self.key_bytes >= least {
            return Ok(());
        }
        let bits = self.key_bytes * 8;
        let what =
            format!("its header says {} with {bits} bits: this is not taken for encryption", self.cipher);
        let hint = "aes, serpent, twofish or camellia with xts-plain64 or cbc-essiv:sha256 are; make a new container";
        Err(Fault::config(what).hint(hint).into())
    }

    /// How many bytes of an image tell whether its header is this one.
    pub(crate) fn compared(&self) -> usize {
        if self.luks_version == 1 { LUKS1_BYTES } else { LUKS2_BYTES }
    }
}

/// The beginning of a local file, enough for a LUKS1 header.
fn start_of(path: &Path) -> Result<Vec<u8>> {
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| {
            let fault = Fault::config(format!("cannot read the header {}: {e}", path.display()));
            fault.hint("it is this machine's copy; put back the one of a backup that `backup-header` made")
        })?;
    let mut start = Vec::new();
    let most = u64::try_from(LUKS1_BYTES)?;
    file.take(most).read_to_end(&mut start).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(start)
}

fn version(start: &[u8]) -> Option<u16> {
    let rest = start.strip_prefix(b"LUKS\xba\xbe")?;
    Some(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]))
}

/// A LUKS1 header (LUKS On-Disk Format Specification 1.2).
fn luks1(start: &[u8]) -> Option<Header> {
    let text = |at: usize, len: usize| {
        let field = start.get(at..at + len)?;
        let end = field.iter().position(|b| *b == 0).unwrap_or(len);
        std::str::from_utf8(&field[..end]).ok().map(str::to_owned)
    };
    let number = |at: usize| start.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let active = |slot: &u32| number(208 + 48 * usize::try_from(*slot).unwrap_or(0)) == Some(0x00AC_71F3);
    Some(Header {
        uuid: text(168, 40)?,
        luks_version: 1,
        cipher: format!("{}-{}", text(8, 32)?, text(40, 32)?),
        sector_size: 512,
        key_bytes: number(108)?.into(),
        data_offset: u64::from(number(104)?) * 512,
        key_slots: (0..8).filter(active).collect(),
        // It is the data's cipher.
        slots_encrypt: true,
    })
}

/// A LUKS2 header: one segment, encrypted and nothing else.
fn luks2(json: &Value, uuid: String) -> Option<Header> {
    let segments = json["segments"].as_object()?;
    let segment = segments.get("0").filter(|_| segments.len() == 1)?;
    let plain = segment["type"] == "crypt" && segment["integrity"].is_null();
    let requirements = &json["config"]["requirements"]["mandatory"];
    if !plain || requirements.as_array().is_some_and(|r| !r.is_empty()) {
        return None;
    }
    let keyslots = json["keyslots"].as_object()?;
    let digests = json["digests"].as_object()?;
    let of_segment = |d: &&Value| d["segments"].as_array().is_some_and(|s| s.iter().any(|s| s == "0"));
    let digest = digests.values().find(of_segment)?;
    let mut key_slots: Vec<u32> =
        digest["keyslots"].as_array()?.iter().filter_map(|s| s.as_str()?.parse().ok()).collect();
    key_slots.sort_unstable();
    let clear =
        |slot: &Value| slot["area"]["encryption"].as_str().is_none_or(|cipher| cipher.contains("null"));
    let size = |slot: &u32| keyslots.get(&slot.to_string())?["key_size"].as_u64();
    Some(Header {
        uuid,
        luks_version: 2,
        cipher: segment["encryption"].as_str()?.to_owned(),
        sector_size: segment["sector_size"].as_u64()?,
        key_bytes: key_slots.iter().map(size).min()??,
        data_offset: segment["offset"].as_str()?.parse().ok()?,
        key_slots,
        slots_encrypt: !keyslots.values().any(clear),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dump() -> Value {
        json!({
            "keyslots": {
                "0": {"type": "luks2", "key_size": 64, "area": {"encryption": "aes-xts-plain64"}},
                "2": {"type": "luks2", "key_size": 64, "area": {"encryption": "aes-xts-plain64"}}
            },
            "segments": {"0": {"type": "crypt", "offset": "2097152", "size": "dynamic", "iv_tweak": "0",
                               "encryption": "aes-xts-plain64", "sector_size": 4096}},
            "digests": {"0": {"keyslots": ["2", "0"], "segments": ["0"]}},
            "config": {"json_size": "12288", "keyslots_size": "1048576"}
        })
    }

    #[test]
    fn luks2_as_cryptsetup_prints_it() {
        let header = luks2(&dump(), "u".into()).unwrap();
        assert_eq!(
            (header.cipher.as_str(), header.sector_size, header.key_bytes),
            ("aes-xts-plain64", 4096, 64)
        );
        assert_eq!((header.data_offset, header.key_slots.as_slice()), (2 << 20, [0, 2].as_slice()));
        header.strong().unwrap();
        // A slot that any key opens, which older versions of cryptsetup take.
        let mut clear = dump();
        clear["keyslots"]["2"]["area"]["encryption"] = json!("cipher_null-ecb");
        luks2(&clear, "u".into()).unwrap().strong().unwrap_err();
    }

    #[test]
    fn what_is_not_one_plain_encrypted_segment_is_refused() {
        let mut linear = dump();
        linear["segments"]["0"]["type"] = json!("linear");
        let mut integrity = dump();
        integrity["segments"]["0"]["integrity"] = json!({"type": "hmac(sha256)"});
        let mut two = dump();
        two["segments"]["1"] = two["segments"]["0"].clone();
        let mut moving = dump();
        moving["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
        for odd in [linear, integrity, two, moving, json!({})] {
            assert_eq!(luks2(&odd, "u".into()), None, "{odd}");
        }
    }

    #[test]
    fn weak_ciphers_are_refused() {
        let good = luks2(&dump(), "u".into()).unwrap();
        for (cipher, key_bytes, strong) in [
            ("aes-xts-plain64", 32, true),
            ("serpent-xts-plain64", 64, true),
            ("aes-cbc-essiv:sha256", 32, true),
            ("aes-xts-plain64", 16, false),
            ("aes-cbc-plain64", 32, false),
            ("aes-ecb", 32, false),
            ("cipher_null-ecb", 64, false),
            ("null-xts-plain64", 64, false),
            ("", 64, false),
        ] {
            let header = Header { cipher: cipher.into(), key_bytes, ..good.clone() };
            assert_eq!(header.strong().is_ok(), strong, "{cipher} {key_bytes}");
        }
    }

    #[test]
    fn luks1_field_by_field() {
        let mut raw = vec![0; 592];
        raw[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        raw[8..11].copy_from_slice(b"aes");
        raw[40..51].copy_from_slice(b"xts-plain64");
        raw[104..108].copy_from_slice(&4096u32.to_be_bytes());
        raw[108..112].copy_from_slice(&64u32.to_be_bytes());
        raw[168..172].copy_from_slice(b"uuid");
        raw[256..260].copy_from_slice(&0x00AC_71F3u32.to_be_bytes());
        assert_eq!(version(&raw), Some(1));
        let header = luks1(&raw).unwrap();
        assert_eq!((header.uuid.as_str(), header.cipher.as_str()), ("uuid", "aes-xts-plain64"));
        assert_eq!((header.key_bytes, header.data_offset, header.key_slots), (64, 2 << 20, vec![1]));
        assert_eq!(luks1(&raw[..200]), None);
    }
}
