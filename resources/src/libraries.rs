//! The shared libraries that a program needs.

/// The files in the output of `ldd`: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`.
pub(crate) fn libraries(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.rsplit_once(" (")?.0;
            let path = line
                .rsplit_once("=> ")
                .map_or(line, |(_, path)| path)
                .trim();
            path.starts_with('/').then(|| path.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_both_forms_of_line() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(text),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
