//! What a program's stderr amounts to: its last part, and the one line of it that says what is wrong.

/// How much of a child's stderr goes into an error, in bytes.
const TAIL: usize = 2048;

/// The last part of what a program said, from a line's start.
pub fn tail(bytes: &[u8]) -> String {
    let cut = bytes.len().saturating_sub(TAIL);
    let part = &bytes[cut..];
    let part =
        if cut == 0 { part } else { part.iter().position(|b| *b == b'\n').map_or(part, |n| &part[n + 1..]) };
    String::from_utf8_lossy(part).trim_end().to_owned()
}

/// The line of a program's stderr that says what is wrong: the first that looks like it, else the first that says
/// anything. The last one often only sums up, or refers to what is above.
pub(crate) fn line(stderr: &str) -> Option<&str> {
    /// Banners, frames, notes of a step that went well, and summaries.
    const NOISE: [&str; 12] = [
        "warning: permanently added",
        "warning: remote host identification has changed",
        "rsync error: ",
        "it is possible that someone is doing something nasty",
        "someone could be eavesdropping",
        "it is also possible that",
        "this system is for",
        "mke2fs ",
        "we trust you have received",
        "** warning: connection is not using a post-quantum",
        "** this session may be vulnerable",
        "** the server may need to be upgraded",
    ];
    const TROUBLE: [&str; 26] = [
        "error",
        "fatal",
        "fail",
        "denied",
        "refused",
        "cannot",
        "can't",
        "could not",
        "unable",
        "no such",
        "not found",
        "invalid",
        "unknown",
        "timed out",
        "unreachable",
        "not permitted",
        "no space",
        "not a ",
        "required",
        "wrong",
        "no key",
        "reset by",
        "is not ",
        "busy",
        "has changed",
        "problem",
    ];
    let speaks = |line: &&str| {
        let words = line.to_lowercase();
        line.chars().any(char::is_alphanumeric)
            && !line.starts_with("@@@")
            && !line.trim_matches('@').trim().is_empty()
            && !NOISE.iter().any(|noise| words.trim_start_matches(['@', ' ']).starts_with(noise))
    };
    let lines = || stderr.lines().map(str::trim).filter(speaks);
    let trouble = |line: &&str| {
        let words = line.to_lowercase();
        TROUBLE.iter().any(|word| words.contains(word))
    };
    lines()
        .find(trouble)
        .or_else(|| lines().next())
        .or_else(|| stderr.lines().map(str::trim).find(|l| !l.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_what_is_wrong_is_the_one_that_is_told() {
        let frame = "@".repeat(59);
        let changed = format!(
            "{frame}\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n{frame}\n\
             IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\n\
             Someone could be eavesdropping on you right now (man-in-the-middle attack)!\n\
             It is also possible that a host key has just been changed.\n\
             The fingerprint for the ED25519 key sent by the remote host is\nSHA256:Jkw1.\n\
             Please contact your system administrator.\n\
             Add correct host key in /root/.ssh/known_hosts to get rid of this message.\n\
             Offending ED25519 key in /root/.ssh/known_hosts:1\n\
             Host key for s2.lan has changed and you have requested strict checking.\n\
             Host key verification failed.\n"
        );
        for (said, told) in [
            (changed.as_str(), "Host key for s2.lan has changed and you have requested strict checking."),
            (
                "Warning: Permanently added 's2' (ED25519) to the list of known hosts.\n\
                 nc@s2: Permission denied (publickey).\n",
                "nc@s2: Permission denied (publickey).",
            ),
            (
                "ssh: connect to host s2 port 22: Connection refused\n\
                 rsync: connection unexpectedly closed (0 bytes received so far) [sender]\n\
                 rsync error: unexplained error (code 255) at io.c(232) [sender=3.2.7]\n",
                "ssh: connect to host s2 port 22: Connection refused",
            ),
            (
                "@@@ Welcome to S2 @@@\nMaintenance on Sunday.\nsh: 1: link-sync: not found\n",
                "sh: 1: link-sync: not found",
            ),
            (
                "rsync: [sender] send_files failed to open \"/data/a\": Permission denied (13)\n\
                 rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(1338)\n",
                "rsync: [sender] send_files failed to open \"/data/a\": Permission denied (13)",
            ),
            (
                "pg_dump: error: query failed: ERROR:  permission denied for table oc_users\n\
                 pg_dump: detail: Query was: LOCK TABLE public.oc_users IN ACCESS SHARE MODE\n",
                "pg_dump: error: query failed: ERROR:  permission denied for table oc_users",
            ),
            ("No key available with this passphrase.\n", "No key available with this passphrase."),
            (
                "Device /srv/c.img does not exist or access denied.\nCommand failed with code -4 (wrong device).\n",
                "Device /srv/c.img does not exist or access denied.",
            ),
            ("read: Connection reset by peer\n", "read: Connection reset by peer"),
            (
                "fuse: mountpoint is not empty\n\
                 fuse: if you are sure this is safe, use the 'nonempty' mount option\n",
                "fuse: mountpoint is not empty",
            ),
            ("sudo: a password is required\n", "sudo: a password is required"),
            (
                "mke2fs 1.47.0 (5-Feb-2023)\nThe file /dev/nothing does not exist and no size was specified.\n",
                "The file /dev/nothing does not exist and no size was specified.",
            ),
            (
                "mount: /mnt: wrong fs type, bad option, bad superblock on /dev/loop0, missing codepage or helper \
                 program, or other error.\n       dmesg(1) may have more information after failed mount system call.\n",
                "mount: /mnt: wrong fs type, bad option, bad superblock on /dev/loop0, missing codepage or helper \
                 program, or other error.",
            ),
            (
                "curl: (60) SSL certificate problem: self-signed certificate\nMore details here: https://curl.se/docs/sslcerts.html\n\n\
                 curl failed to verify the legitimacy of the server and therefore could not establish a secure connection \
                 to it. To learn more about this situation and\nhow to fix it, please visit the web page mentioned above.\n",
                "curl: (60) SSL certificate problem: self-signed certificate",
            ),
            ("\n  \nsomething odd\nbye\n", "something odd"),
            ("@@@@\n", "@@@@"),
        ] {
            assert_eq!(line(said), Some(told));
        }
        assert_eq!(line(" \n"), None);
    }
}
