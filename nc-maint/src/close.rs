//! `nc-maint close`: a copy of an instance that has not been put in place yet shall not open by itself.
//!
//! A configuration that was saved under the drop-in says `maintenance => false`. So the restore writes the opposite into
//! it, before anybody is served. Nothing of the file is executed. `nc-maint off` takes it out again.

use std::path::Path;

use anyhow::Result;
use common::status::Report;

use crate::config_file::{ConfigFile, Key};
use crate::dropin;

/// Closes the instance in `root`.
pub(crate) fn close(root: &Path, report: &mut Report) -> Result<()> {
    let file = ConfigFile::open(root)?;
    report.set_text("file", file.path().as_os_str());
    // One that the snapshot's instance was held in maintenance with, if it was taken along.
    report.changed |= dropin::clear(file.folder())?;
    report.changed |= file.set(Key::Maintenance, Some("true"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_mode_stay_and_links_are_not_followed() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let file = config.join("config.php");
        std::fs::write(&file, "<?php $CONFIG = [];").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let left = ["zz-nc-backup-maintenance.config.php", "zz-nc-backup-maintenance-0f-1.config.php"];
        for name in left {
            std::fs::write(config.join(name), "<?php").unwrap();
        }
        let mut report = Report::new("nc-maint");
        close(dir.path(), &mut report).unwrap();
        assert!(report.changed && left.iter().all(|name| !config.join(name).exists()));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        let mut again = Report::new("nc-maint");
        close(dir.path(), &mut again).unwrap();
        assert!(!again.changed);

        let victim = dir.path().join("victim");
        std::fs::rename(&file, &victim).unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        assert!(close(dir.path(), &mut Report::new("nc-maint")).is_err());
    }
}
