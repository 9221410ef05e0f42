//! Builds an object of kernel programs for the crate whose build script includes this file.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

#[expect(dead_code, reason = "xtask, whose module this is, uses the rest")]
mod toolchain;

use toolchain::Toolchain;

/// The whole build script: builds the programs in binary `name` of `lb-ebpf`, and gives the crate the path of their
/// object in the environment variable `variable`, for `include_bytes!(env!(…))`.
pub fn export(name: &str, variable: &str) -> ExitCode {
    match build(name) {
        Ok(object) => {
            println!("cargo::rustc-env={variable}={}", object.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Cargo shows this with its line breaks; an error directive has one line only.
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build(name: &str) -> Result<PathBuf, String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().unwrap_or(&manifest);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = target_dir(&out_dir);
    let triple = toolchain::triple(&variable("CARGO_CFG_TARGET_ENDIAN")?);

    let toolchain = Toolchain::find()
        .map_err(|missing| format!("error: {missing}\n      run `cargo xtask setup`, which installs it"))?;
    let output = toolchain
        .build(&workspace.join("lb-ebpf"), triple, &target_dir)
        .args(["--bin", name])
        .args(env::var_os("CARGO_FEATURE_NEXT_LAYOUT").map(|_| "--features=next-layout"))
        .output()
        .map_err(|error| format!("error: cannot start cargo for lb-ebpf: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("in lb-ebpf, built with {}:\n{messages}", toolchain.rust));
    }
    for line in messages.lines().filter(|line| !line.is_empty()) {
        println!("cargo::warning=lb-ebpf: {line}");
    }

    // A copy of our own: the next build of another profile replaces the file in the shared directory.
    let built = target_dir.join(triple).join("release").join(name);
    let object = out_dir.join(name).with_extension("o");
    let copied =
        fs::read(&built).map_err(Box::from).and_then(|whole| Ok(fs::write(&object, stripped(&whole)?)?));
    copied.map_err(|error: Box<dyn Error>| {
        format!("error: cannot copy {} to {}: {error}", built.display(), object.display())
    })?;

    for source in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-ebpf/Cargo.lock",
        "lb-ebpf/.cargo/config.toml",
        "lb-common/src",
        "lb-common/Cargo.toml",
        "Cargo.toml",
    ] {
        rerun_if_changed(&workspace.join(source));
    }
    rerun_if_changed(&toolchain.rust.rustc);
    rerun_if_changed(&toolchain.linker.path);
    Ok(object)
}

/// The object without DWARF. BTF, which was made of it, has what the kernel wants; the rest is most of the object, and a program that
/// carries it takes it into memory when it loads the object.
fn stripped(whole: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut object = Builder::read(whole)?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    object.delete_orphans();
    // The linker keeps the names of sections among those of symbols.
    let names = object.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut rest = Vec::new();
    object.write(&mut rest)?;
    Ok(rest)
}

/// A directory beside the outer cargo's profiles: its lock is not ours to wait for, and all profiles share one build of
/// core. Cargo marks the root of its directory; where the mark is not found, this profile has a build of its own.
fn target_dir(out_dir: &Path) -> PathBuf {
    let root = out_dir.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists());
    root.unwrap_or(out_dir).join("bpf")
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}; cargo sets it for build scripts"))
}

fn rerun_if_changed(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}
