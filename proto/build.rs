//! Compiles the protos with protox, a compiler in Rust: nothing has to be installed for it.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 3] =
        ["proto/larder/v1/cache.proto", "proto/larder/v1/cluster.proto", "proto/larder/raft/v1/raft.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // What gRPC reflection serves: the client API only.
    let mut public = descriptors.clone();
    public.file.retain(|file| !file.name().contains("/raft/"));
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("larder_descriptor.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
