//! Restores a snapshot as another machine, in a VMM that was started for it (`vmgenie api --api-sock SOCKET`), and waits until
//! its guest has adapted: `clone_and_wait SOCKET DIRECTORY`.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use vmgenie_api::client::Client;
use vmgenie_api::wire::SnapshotLoad;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: clone_and_wait SOCKET DIRECTORY".into());
    };
    let directory = std::path::absolute(Path::new(&directory))?;
    let mut client = Client::new(socket)?;
    client.load_snapshot(&SnapshotLoad {
        resume_vm: true,
        ..SnapshotLoad::of(directory.join("state"), directory.join("memory"))
    })?;
    let waited = client.wait_for_generation(Duration::from_secs(10))?;
    match waited.adapted {
        true => println!("adapted after {} ms", waited.waited_us / 1000),
        false => println!("not adapted: {:?}", waited.missing),
    }
    Ok(())
}
