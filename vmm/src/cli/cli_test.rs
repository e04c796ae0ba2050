use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use super::args::{Generation, LogLevel, OnReboot};
use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn refused(line: &str) -> ErrorKind {
    parse(line).unwrap_err().kind()
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

/// Where clap breaks lines on a wide terminal, and where there is none.
const HELP_WIDTH: usize = 100;

/// What is written behind the options is shown so: no line is broken, and an example can be copied. And nothing that clap takes for a line break
/// stands in what it says of an option.
pub(super) fn check_help(mut command: clap::Command) {
    let name = command.get_name().to_owned();
    let written = command.get_after_help().map(ToString::to_string);
    let written = written.unwrap_or_else(|| panic!("{name} has no example"));
    assert!(written.contains("Example"), "{name}: {written}");
    for help in [command.render_help(), command.render_long_help()] {
        let shown = help.to_string();
        assert!(shown.contains(&written), "{name}: {shown}");
        assert!(!shown.contains('\u{1b}'), "{name}: {shown:?}");
    }
    for line in written.lines() {
        assert!(line.len() <= HELP_WIDTH, "{name}: {line}");
        let quotes = line.matches('\'').count();
        assert!(
            !line.starts_with("  vmgenie") || line.contains("Firecracker") || quotes % 2 == 0,
            "{line}"
        );
    }
    for argument in command.get_arguments() {
        for help in [argument.get_help(), argument.get_long_help()] {
            let text = help.map(ToString::to_string).unwrap_or_default();
            assert!(!text.contains("{n}"), "{name}: {text}");
        }
    }
}

#[test]
fn the_help_of_every_command_is_shown_as_it_is_written() {
    let cli = Cli::command();
    cli.get_subcommands().cloned().for_each(check_help);
    check_help(cli);
}

#[test]
fn the_help_of_clone_has_the_number_of_the_clone_in_its_examples() {
    let mut cli = Cli::command();
    let help = cli
        .find_subcommand_mut("clone")
        .unwrap()
        .render_help()
        .to_string();
    for example in [
        "--data 'web-{n}' --json",
        "'net0=tap{n}'",
        "'100+{n}'",
        "disk-{n}.overlay",
    ] {
        assert!(help.contains(example), "{help}");
    }
}

#[test]
fn run_has_the_defaults_that_its_help_tells() {
    let Command::Run(args) = parse("vmgenie run --kernel k").unwrap().command else {
        panic!()
    };
    assert_eq!(args.kernel, Some(PathBuf::from("k")));
    assert_eq!((args.memory, args.cpus), (None, 1));
    assert_eq!(args.cmdline, "console=ttyS0");
    assert_eq!(args.on_reboot, OnReboot::Restart);
    assert_eq!((args.initrd, args.api_sock), (None, None));
}

#[test]
fn a_disk_is_enough_to_run() {
    let line = "vmgenie run --disk debian.ext4";
    let Command::Run(args) = parse(line).unwrap().command else {
        panic!("{line}");
    };
    assert!(args.devices.drives.disk.is_some() && args.kernel.is_none());
    assert_eq!(
        refused("vmgenie run --drive debian.ext4"),
        ErrorKind::MissingRequiredArgument
    );
}

#[test]
fn run_takes_human_units() {
    let line = "vmgenie run --kernel k --initrd i --memory 1G --cpus 4 --api-sock s --id x";
    let Command::Run(args) = parse(line).unwrap().command else {
        panic!()
    };
    assert_eq!((args.memory, args.cpus), (Some(1024), 4));
    assert_eq!(args.api_sock, Some("s".into()));
}

#[test]
fn what_cannot_be_run_is_a_usage_error() {
    let nothing = parse("vmgenie run").unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::MissingRequiredArgument);
    let told = nothing.to_string();
    assert!(told.contains("--kernel <FILE>|--disk <DRIVE>"), "{told}");
    for bad in [
        "--memory 16M",
        "--memory 1X",
        "--cpus 0",
        "--cpus 33",
        "--cpus two",
    ] {
        let kind = refused(&format!("vmgenie run --kernel k {bad}"));
        assert_eq!(kind, ErrorKind::ValueValidation, "{bad}");
    }
    assert_eq!(
        refused("vmgenie run --kernel k --on-reboot dance"),
        ErrorKind::InvalidValue
    );
    assert_eq!(parse("vmgenie run").unwrap_err().exit_code(), 2);
}

#[test]
fn an_empty_vmm_ends_when_its_guest_reboots() {
    let Command::Api(args) = parse("vmgenie api --api-sock s").unwrap().command else {
        panic!()
    };
    assert_eq!(args.on_reboot, OnReboot::Exit);
    assert_eq!(refused("vmgenie api"), ErrorKind::MissingRequiredArgument);
}

#[test]
fn a_restored_machine_may_end_at_a_reboot_and_is_told_why_it_cannot_boot_again() {
    for line in ["vmgenie restore s", "vmgenie clone s -n 2"] {
        parse(line).unwrap();
        parse(&format!("{line} --on-reboot exit")).unwrap();
        let error = parse(&format!("{line} --on-reboot restart")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
        assert!(error.to_string().contains("not in the snapshot"), "{error}");
        parse(&format!("{line} --on-reboot dance")).unwrap_err();
        let words = line.split(' ').take(2);
        let help = Cli::try_parse_from(words.chain(["--help"])).unwrap_err();
        let help = help.to_string();
        assert!(
            help.contains("[possible values: exit]") || help.contains("- exit:"),
            "{help}"
        );
        assert!(!help.contains("- restart:"), "{help}");
    }
    // The VMM that becomes the machine was told when it was started.
    parse("vmgenie restore s --into v").unwrap();
    let both = refused("vmgenie restore s --into v --on-reboot exit");
    assert_eq!(both, ErrorKind::ArgumentConflict);
}

#[test]
fn that_a_comma_is_written_twice_is_told_wherever_a_path_is_given() {
    let mut command = Cli::command();
    for (name, options) in [
        ("run", &["disk", "drive", "vsock"][..]),
        ("restore", &["drive", "vsock"]),
        ("clone", &["drive", "vsock"]),
    ] {
        let command = command.find_subcommand_mut(name).unwrap();
        for option in options {
            let mut arguments = command.get_arguments();
            let argument = arguments.find(|a| a.get_id() == *option).unwrap();
            let help = argument.get_long_help().or(argument.get_help());
            let help = help.unwrap().to_string();
            assert!(
                help.contains("comma of the path"),
                "{name} --{option}: {help}"
            );
            assert!(help.contains("twice"), "{name} --{option}: {help}");
        }
    }
}

#[test]
fn a_socket_is_given_as_an_argument_or_as_an_option_and_not_as_both() {
    for (line, machine, socket) in [
        ("vmgenie pause s", Some("s"), None),
        ("vmgenie pause --api-sock s", None, Some("s")),
    ] {
        let Command::Pause(target) = parse(line).unwrap().command else {
            panic!()
        };
        assert_eq!(target.machine.as_deref(), machine);
        assert_eq!(target.api_sock, socket.map(PathBuf::from));
    }
    for (line, machine) in [
        ("vmgenie snapshot web-1 d", Some("web-1")),
        ("vmgenie snapshot --api-sock s d", None),
    ] {
        let Command::Snapshot(args) = parse(line).unwrap().command else {
            panic!()
        };
        assert_eq!(args.target.machine.as_deref(), machine);
        assert_eq!(args.dir, PathBuf::from("d"));
    }
    assert_eq!(
        refused("vmgenie snapshot d"),
        ErrorKind::MissingRequiredArgument
    );
    assert_eq!(refused("vmgenie pause"), ErrorKind::MissingRequiredArgument);
    assert_eq!(
        refused("vmgenie pause s --api-sock s"),
        ErrorKind::ArgumentConflict
    );
}

#[test]
fn restore_makes_a_new_generation_unless_told_otherwise() {
    let restore = |line| match parse(line).unwrap().command {
        Command::Restore(args) => (args.generation, args.no_resume),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        restore("vmgenie restore --into s d"),
        (Generation::New, false)
    );
    let keep = "vmgenie restore d --api-sock s --generation keep --no-resume";
    assert_eq!(restore(keep), (Generation::Keep, true));
}

#[test]
fn clone_needs_a_number_of_clones() {
    let Command::Clone(args) = parse("vmgenie clone d -n 3").unwrap().command else {
        panic!()
    };
    assert_eq!((args.clones.number, args.clones.dir), (3, None));
    assert_eq!(
        refused("vmgenie clone d"),
        ErrorKind::MissingRequiredArgument
    );
    assert_eq!(refused("vmgenie clone d -n 0"), ErrorKind::ValueValidation);
}

#[test]
fn fork_takes_what_clone_takes_and_waits_within_bounds() {
    let line = "vmgenie fork web s -n 3 --dir d --net net0=tap{n} --data web-{n} --quiesce 1m --fallback plain --wait 0s";
    let Command::Fork(args) = parse(line).unwrap().command else {
        panic!()
    };
    assert_eq!(
        (args.machine.as_str(), args.snapshot),
        ("web", Some("s".into()))
    );
    assert_eq!(
        (args.clones.number, args.clones.overrides.net.len()),
        (3, 1)
    );
    assert_eq!(
        (args.quiesce, args.wait),
        (Duration::from_secs(60), Duration::ZERO)
    );
    let Command::Fork(args) = parse("vmgenie fork web -n 1").unwrap().command else {
        panic!()
    };
    assert_eq!(
        (args.quiesce, args.wait),
        (Duration::from_secs(10), Duration::from_secs(30))
    );
    assert_eq!(
        (args.snapshot, args.fallback),
        (None, super::cooperation::FallbackArg::Refuse)
    );
    for wrong in ["web -n 1 --quiesce 0s", "web -n 0", "web -n 1 --wait 11m"] {
        assert_eq!(
            refused(&format!("vmgenie fork {wrong}")),
            ErrorKind::ValueValidation,
            "{wrong}"
        );
    }
    // The original goes on: no clone can be the same machine.
    assert_eq!(
        refused("vmgenie fork web -n 1 --generation keep"),
        ErrorKind::UnknownArgument
    );
}

#[test]
fn json_and_the_log_level_may_stand_anywhere() {
    assert!(parse("vmgenie --json info s").unwrap().all.json);
    let cli = parse("vmgenie info s --json --log-level debug").unwrap();
    assert!(cli.all.json);
    assert_eq!(cli.all.log_level, LogLevel::Debug);
}

#[test]
fn a_line_of_api_is_read_as_by_the_whole_command_line() {
    for line in [
        "vmgenie api --api-sock s",
        "vmgenie api --json --api-sock=s --id web-1 --on-reboot restart --log-level debug",
        "vmgenie api --api-sock s --lifeline --rotate r --doomed a --doomed b --shared-dir d",
    ] {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let only = Cli::read_api(&words).unwrap();
        assert_eq!(format!("{only:?}"), format!("{:?}", parse(line).unwrap()));
    }
    // What is at fault, and what is asked for, the whole command line tells.
    for line in [
        "vmgenie",
        "vmgenie --json api --api-sock s",
        "vmgenie run --kernel k",
        "vmgenie api",
        "vmgenie api --api-sock s --id a_b",
        "vmgenie api --api-sock s --on-reboot dance",
        "vmgenie api --api-sock s --rotate r",
        "vmgenie api --help",
        "vmgenie api --api-sock s info",
    ] {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        assert!(Cli::read_api(&words).is_none(), "{line}");
    }
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let line = format!("vmgenie completions {shell}");
        let Command::Completions(args) = parse(&line).unwrap().command else {
            panic!()
        };
        let mut script = Vec::new();
        let shell = clap_complete::Shell::from(args.shell);
        clap_complete::generate(shell, &mut Cli::command(), "vmgenie", &mut script);
        assert!(String::from_utf8(script).unwrap().contains("generation"));
    }
}

#[test]
fn memory_sizes_are_powers_of_1024_and_mib_without_a_unit() {
    for (text, mib) in [
        ("256M", 256),
        ("256", 256),
        ("256 MiB", 256),
        ("1G", 1024),
        ("1gb", 1024),
        ("2Gi", 2048),
        ("65536K", 64),
        ("1T", 1 << 20),
        ("1.5G", 1536),
        ("0.25 GiB", 256),
        ("64.0", 64),
    ] {
        assert_eq!(parse_memory_mib(text), Ok(mib), "{text}");
    }
}

#[test]
fn memory_sizes_that_no_machine_has_are_refused_with_the_reason() {
    for (text, reason) in [
        ("", "expected a size"),
        ("G", "expected a size"),
        ("-1G", "expected a size"),
        ("1.5.5G", "expected a size"),
        (".5G", "expected a size"),
        ("1.G", "expected a size"),
        ("1.3G", "whole number of MiB"),
        ("1.00000000000000000001G", "expected a size"),
        ("1E", "unknown unit"),
        ("33000K", "whole number of MiB"),
        ("31M", "31 MiB"),
        ("64T", "MiB of memory"),
        ("18446744073709551615T", "too large"),
        ("99999999999999999999", "expected a size"),
    ] {
        let message = parse_memory_mib(text).unwrap_err();
        assert!(message.contains(reason), "{text}: {message}");
    }
}

#[test]
fn a_time_has_a_unit_and_a_limit() {
    assert_eq!(units::parse_wait("2m"), Ok(Duration::from_secs(120)));
    for text in ["", "abc", "10", "-1s", "s"] {
        let told = units::parse_wait(text).unwrap_err();
        assert_eq!(told, "expected a time such as 500ms, 10s or 2m", "{text}");
    }
    assert_eq!(units::parse_wait("1h").unwrap_err(), "10m at most");
}

#[test]
fn numbers_are_shown_with_units() {
    assert_eq!(units::milliseconds(Duration::from_micros(1234)), "1.23 ms");
    assert_eq!(units::bytes(0), "0 B");
    assert_eq!(units::bytes(1023), "1023 B");
    assert_eq!(units::bytes(33 << 20), "33.0 MiB");
    assert_eq!(units::bytes(u64::MAX), "16777216.0 TiB");
}

#[test]
fn tables_have_no_lines_and_no_trailing_blanks() {
    let table = output::table(["A", "B"], vec![["1".to_owned(), "22".to_owned()]]);
    assert_eq!(table, "A  B\n1  22");
}

#[test]
fn every_command_has_a_manual_page_with_its_options_and_examples() {
    let pages = manual_pages::pages(Cli::command()).unwrap();
    let visible = Cli::command().get_subcommands().count();
    assert_eq!(
        (pages.len(), pages[0].file.as_str()),
        (visible + 1, "vmgenie.1")
    );
    for page in &pages {
        let text = &page.text;
        assert!(text.contains("\n.SH EXAMPLE"), "{}: {text}", page.file);
        assert!(!text.contains('\u{1b}'), "{}: {text:?}", page.file);
    }
    let clone = pages.iter().find(|page| page.file == "vmgenie-clone.1");
    let text = &clone.unwrap().text;
    assert!(
        text.contains("\\-\\-data") && text.contains("web\\-{n}"),
        "{text}"
    );
    assert!(
        pages[0].text.contains("\n.SH \"EXIT STATUS\"\n"),
        "{}",
        pages[0].text
    );
}
