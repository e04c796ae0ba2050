//! What a restored machine has otherwise, as it is named on the command line: the same for one machine and for many clones.

use vmgenie_machine::config::DeviceId;

use crate::words::told;

/// A part of a request that changes the devices of a restored machine, in which `{n}` stands for the number of the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    pub(super) fn of(&self, number: Option<u16>) -> String {
        match number {
            Some(number) => self.0.replace("{n}", &number.to_string()),
            None => self.0.clone(),
        }
    }

    /// The same of what is no text but a name: there, other things in braces are mistakes.
    pub(super) fn checked(&self, number: Option<u16>) -> Result<String, String> {
        let made = self.of(number);
        let mut braces = self.0.split('{').skip(1);
        match braces.find(|part| number.is_some() && !part.starts_with("n}")) {
            None => Ok(made),
            Some(_) => Err(format!(
                "{:?} has other braces than {{n}}, which stands for the number of the clone",
                self.0
            )),
        }
    }
}

/// `NAME=VALUE`, both there.
fn parse_override(text: &str) -> Result<(String, Template), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            DeviceId::new(name).map_err(told)?;
            Ok((name.to_owned(), Template(value.to_owned())))
        }
        _ => Err("it reads NAME=VALUE".to_owned()),
    }
}

/// `NAME=VALUE[,OPTION]`, checked when the number of the clone is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub(super) name: String,
    pub(super) value: Template,
}

/// `DRIVE=PATH[,copy|,overlay]` or `INTERFACE=TAP[,mac=MAC]`.
pub(super) fn parse_device_override(text: &str) -> Result<Override, String> {
    let (name, value) = parse_override(text)?;
    Ok(Override { name, value })
}

/// Any text.
pub(super) fn parse_template(text: &str) -> Result<Template, String> {
    match text.is_empty() {
        true => Err("it is empty".to_owned()),
        false => Ok(Template(text.to_owned())),
    }
}

/// Any text, none included.
pub(super) fn parse_any_template(text: &str) -> Result<Template, String> {
    Ok(Template(text.to_owned()))
}
