//! Where this process is in the unified hierarchy of control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the unified hierarchy is mounted, and this process's group as a path below that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) own: PathBuf,
}

impl Place {
    /// None where there is no such hierarchy.
    pub(super) fn of_this_process() -> Option<Self> {
        Self::parse(
            &fs::read_to_string("/proc/self/mountinfo").ok()?,
            &fs::read_to_string("/proc/self/cgroup").ok()?,
        )
    }

    fn parse(mountinfo: &str, cgroup: &str) -> Option<Self> {
        let unified = |line: &&str| {
            let kind = line.split_once(" - ").map(|(_, kind)| kind);
            kind.is_some_and(|kind| kind.starts_with("cgroup2 "))
        };
        let mount = mountinfo.lines().find(unified)?.split(' ').nth(4)?;
        let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Self {
            root: mount.into(),
            own: own.into(),
        })
    }

    /// The directory of this process's group.
    pub(super) fn directory(&self) -> PathBuf {
        self.root.join(&self.own)
    }
}

/// Whether the group's file `name` has this line.
pub(super) fn has_line(group: &Path, name: &str, line: &str) -> bool {
    fs::read_to_string(group.join(name)).is_ok_and(|text| text.lines().any(|l| l == line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_where_the_unified_hierarchy_is_mounted() {
        let mountinfo = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw\n\
                         31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n";
        let cgroup = "1:cpu:/\n0::/system.slice/sysgenctl-agent.service\n";
        let place = Place::parse(mountinfo, cgroup).unwrap();
        assert_eq!(place.root, Path::new("/sys/fs/cgroup/unified"));
        let expected = "/sys/fs/cgroup/unified/system.slice/sysgenctl-agent.service";
        assert_eq!(place.directory(), Path::new(expected));
        assert_eq!(Place::parse("", cgroup), None);
    }
}
