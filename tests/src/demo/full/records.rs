//! A writer in the guest: each record is numbered, has a checksum, and is told to the host when the disk has it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sha2::{Digest, Sha256};
use vmgenie_tests::Vm;
use vmgenie_tests::net::HOST;

/// Where the writer tells what it has written.
pub(crate) const PORT: u16 = 9001;
/// The file that it writes.
const FILE: &str = "/var/records";

/// `sync FILE` is fsync(2). The number is told when that has returned, and never before.
const WRITER: &str = "n=0; while :; do n=$((n+1)); read -r id < /proc/sys/kernel/random/uuid; \
    sum=$(printf %s \"$n $id\" | sha256sum); echo \"$n $id ${sum%% *}\" >> FILE && sync FILE && echo $n || exit; done";

/// What the host was told of the writer.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<AtomicU64>);

impl Told {
    /// Listens to the one writer that connects.
    pub(crate) fn by(listener: TcpListener) -> Self {
        let told = Self::default();
        let number = Arc::clone(&told.0);
        thread::spawn(move || {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if let Ok(record) = line.trim().parse() {
                    number.store(record, Ordering::Relaxed);
                }
            }
        });
        told
    }

    /// The last record that the disk was said to have.
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Starts the writer.
pub(crate) fn start(vm: &mut Vm) {
    let writer = WRITER.replace("FILE", FILE);
    vm.shell(&format!(
        "sh -c '{writer}' < /dev/null 2> /dev/null | busybox nc {HOST} {PORT} > /dev/null 2>&1 &"
    ));
}

/// Reads the file from the disk, not from what the kernel has kept of it; returns how many records are whole and in
/// order, and whether there is nothing else. Where the writer was cut short its last record may be in part.
pub(crate) fn on_disk(vm: &mut Vm) -> u64 {
    // What was flushed is clean, and goes; no `sync`, which would flush what was not.
    vm.shell("echo 3 > /proc/sys/vm/drop_caches");
    whole(&vm.shell(&format!("cat {FILE}")))
}

/// How many records are whole, up to the first that is not.
fn whole(text: &str) -> u64 {
    let is_whole = |(number, line): &(u64, &str)| {
        line.rsplit_once(' ').is_some_and(|(record, sum)| {
            let digest = Sha256::digest(record.as_bytes());
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            record.split(' ').next() == Some(&number.to_string()) && sum == hex
        })
    };
    (1..).zip(text.lines()).take_while(is_whole).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_up_to_the_first_that_is_damaged_or_out_of_order() {
        let record = |number: u64| {
            let text = format!("{number} id");
            let digest = Sha256::digest(text.as_bytes());
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{text} {hex}\n")
        };
        let [one, two, three] = [1, 2, 3].map(record);
        assert_eq!(whole(&format!("{one}{two}{three}")), 3);
        assert_eq!(whole(&format!("{one}{three}{two}")), 1);
        assert_eq!(whole(&format!("{one}{}", two.replace("id", "ib"))), 1);
        assert_eq!(whole(&format!("{one}{}", &two[..20])), 1);
        assert_eq!(whole(""), 0);
    }
}
