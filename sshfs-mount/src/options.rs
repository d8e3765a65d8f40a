//! The options of sshfs and ssh that a profile may add: those that cannot weaken what we promise.

use anyhow::Result;
use common::fault::Fault;

/// What a value looks like.
#[derive(Clone, Copy)]
enum Shape {
    YesNo,
    /// From, to.
    Number(u32, u32),
    Family,
    /// Names of algorithms, as ssh writes lists of them.
    Algorithms,
    /// `[user@]host[:port]`, more with commas.
    Jump,
}

const ALLOWED: [(&str, Shape); 12] = [
    ("compression", Shape::YesNo),
    ("dir_cache", Shape::YesNo),
    ("max_conns", Shape::Number(1, 16)),
    ("AddressFamily", Shape::Family),
    ("Ciphers", Shape::Algorithms),
    ("Compression", Shape::YesNo),
    ("ConnectTimeout", Shape::Number(1, 300)),
    ("KexAlgorithms", Shape::Algorithms),
    ("MACs", Shape::Algorithms),
    ("ProxyJump", Shape::Jump),
    ("ServerAliveCountMax", Shape::Number(1, 100)),
    ("ServerAliveInterval", Shape::Number(1, 600)),
];

/// The names of the options that are allowed.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ALLOWED.iter().map(|(name, _)| *name)
}

/// Checked options, in the order given; of two with one name the last one counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options(Vec<(&'static str, String)>);

impl Options {
    /// Checks `NAME=VALUE` texts.
    pub(crate) fn parse(given: &[String]) -> Result<Options> {
        let mut options = Options::default();
        for text in given {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            let Some((name, shape)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = names().collect();
                return Err(Fault::config(format!("offsite.sshfs.options: '{text}' is not allowed"))
                    .hint(format!("allowed, as NAME=VALUE: {}", known.join(", ")))
                    .into());
            };
            if let Some(right) = shape.wrong(value) {
                let message = format!("offsite.sshfs.options: {name} = '{value}': this must be {right}");
                return Err(Fault::config(message).into());
            }
            options.0.retain(|(earlier, _)| earlier != name);
            options.0.push((name, value.to_owned()));
        }
        Ok(options)
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// The number that `name` has.
    pub(crate) fn number(&self, name: &str, default: u32) -> u32 {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

impl Shape {
    /// What would be right, if `value` is not.
    fn wrong(self, value: &str) -> Option<String> {
        let of = |more: &str| {
            let ok = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !value.is_empty() && value.chars().all(ok)
        };
        let (ok, right) = match self {
            Shape::YesNo => (matches!(value, "yes" | "no"), "yes or no".into()),
            Shape::Number(from, to) => (
                of("") && value.parse().is_ok_and(|n: u32| (from..=to).contains(&n)),
                format!("a number from {from} to {to}"),
            ),
            Shape::Family => (matches!(value, "any" | "inet" | "inet6"), "any, inet or inet6".into()),
            Shape::Algorithms => {
                let ok = of("-+^@.,_*") && !value.split([',', '+', '-', '^']).any(|name| name == "none");
                (ok, "a list of algorithms as in ssh_config(5)".into())
            }
            Shape::Jump => (
                of("-@.,_:[]") && !value.starts_with('-') && value != "none",
                "[user@]host[:port], as in ssh_config(5)".into(),
            ),
        };
        (!ok).then_some(right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[&str]) -> Result<Options> {
        Options::parse(&given.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_harmless_is_taken_and_the_last_one_counts() {
        let options =
            parse(&["Ciphers=aes128-ctr,aes256-ctr", "ConnectTimeout=5", "ConnectTimeout=9"]).unwrap();
        assert_eq!(options.number("ConnectTimeout", 20), 9);
        assert_eq!(options.get("Ciphers"), Some("aes128-ctr,aes256-ctr"));
        assert_eq!(options.iter().count(), 2);
    }

    #[test]
    fn what_could_weaken_is_refused_by_name() {
        for bad in [
            "StrictHostKeyChecking=no",
            "reconnect",
            "allow_other",
            "ProxyCommand=sh",
            "ssh_command=sh",
            "password_stdin",
            "Compression=maybe",
            "ConnectTimeout=0",
            "ConnectTimeout=1e1",
            "Ciphers=none",
            "Ciphers=aes128-ctr -oProxyCommand=x",
            "ProxyJump=-oProxyCommand=x",
            "ProxyJump=a;b",
            "max_conns=",
            "",
        ] {
            let error = parse(&[bad]).unwrap_err();
            assert_eq!(common::fault::kind_of(&error).exit_code(), 78, "{bad}");
        }
    }
}
