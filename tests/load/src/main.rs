//! `guest-load serve PORT`: the guest's side.

use std::net::TcpListener;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let port = match &arguments[..] {
        [command, port] if command == "serve" => port.parse::<u16>().ok(),
        _ => None,
    };
    let Some(port) = port else {
        eprintln!("usage: guest-load serve PORT");
        return ExitCode::from(2);
    };
    let served = TcpListener::bind(("0.0.0.0", port)).and_then(|listener| {
        println!("ready");
        guest_load::serve(&listener)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-load: {error}");
            ExitCode::FAILURE
        }
    }
}
