//! Whether a program needs a dynamic loader, by its ELF header, and for which machine it is.

use anyhow::{Result, bail};

const INTERP: u32 = 3;

/// The machine that a static program is for, as container images name it.
///
/// # Errors
/// When it is no 64-bit little-endian ELF program for a known machine, or asks for a dynamic loader.
pub fn architecture_of_static(program: &[u8]) -> Result<&'static str> {
    if program.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        bail!("this is no 64-bit little-endian ELF program");
    }
    let architecture = match u16_at(program, 18) {
        Some(62) => "amd64",
        Some(183) => "arm64",
        other => {
            bail!("the program is for machine {other:?}; known are 62 (x86_64) and 183 (aarch64)")
        }
    };
    let (Some(table), Some(size), Some(count)) = (
        u64_at(program, 32),
        u16_at(program, 54),
        u16_at(program, 56),
    ) else {
        bail!("the ELF header is cut off");
    };
    for number in 0..usize::from(count) {
        let offset = usize::try_from(table)? + number * usize::from(size);
        match u32_at(program, offset) {
            None => bail!("the ELF program headers are cut off"),
            Some(INTERP) => bail!(
                "the program asks for a dynamic loader, which the image does not have: build it \
                 with deploy/image/program.sh"
            ),
            Some(_) => {}
        }
    }
    Ok(architecture)
}

fn bytes_at<const N: usize>(program: &[u8], offset: usize) -> Option<[u8; N]> {
    program.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn u16_at(program: &[u8], offset: usize) -> Option<u16> {
    bytes_at(program, offset).map(u16::from_le_bytes)
}

fn u32_at(program: &[u8], offset: usize) -> Option<u32> {
    bytes_at(program, offset).map(u32::from_le_bytes)
}

fn u64_at(program: &[u8], offset: usize) -> Option<u64> {
    bytes_at(program, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dynamically_linked_programs_and_other_files_are_rejected() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = architecture_of_static(&own).unwrap_err().to_string();
        assert!(error.contains("dynamic loader"), "{error}");
        for broken in [&b"#!/bin/sh"[..], &own[..40], &own[..70]] {
            assert!(architecture_of_static(broken).is_err());
        }
    }
}
