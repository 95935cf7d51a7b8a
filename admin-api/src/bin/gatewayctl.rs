//! `gatewayctl`: what operators do, from a terminal or a pipeline.

use std::process::ExitCode;

fn main() -> ExitCode {
    seiketsu_admin_api::ctl::main()
}
