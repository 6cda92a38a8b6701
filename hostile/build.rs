//! Refuses to build the way in for anything that could be released.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PROFILE");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if is_release && std::env::var_os("CARGO_FEATURE_PAYLOAD").is_some() {
        println!("cargo::error=the feature `hostile` is for tests: a release build must not have it");
    }
}
