//! A gateway of the run's own, with one origin in each of two regions.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Context;

use super::Plan;
use crate::process::{self, Server, command, free_address};

const NODE: &str = include_str!("../../scenarios/node.yaml");
const TENANTS: &str = include_str!("../../scenarios/tenants.yaml");

/// Ends with the value: first the gateway, then its origins.
#[derive(Debug)]
pub struct OwnGateway {
    gateway: Server,
    address: SocketAddr,
    _origins: [Server; 2],
}

impl OwnGateway {
    pub fn start(plan: &Plan) -> anyhow::Result<Self> {
        let [http, operations, west, east] = [(); 4].map(|()| free_address());
        let (http, operations, west, east) = (http?, operations?, west?, east?);
        let origins = [origin(plan, west, "eu-west")?, origin(plan, east, "us-east")?];

        let write = |name: &str, template: &str, values: &[(&str, String)]| {
            let path = plan.folder.join(name);
            fs::write(&path, fill(template, values)).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let tenants = write(
            "tenants.yaml",
            TENANTS,
            &[("tenant", plan.tenant.clone()), ("west", west.to_string()), ("east", east.to_string())],
        )?;
        let node = write(
            "node.yaml",
            NODE,
            &[
                ("http", http.to_string()),
                ("operations", operations.to_string()),
                ("tenants", json_path(&tenants)),
                ("state_dir", json_path(&plan.folder.join("state"))),
                ("threads", "0".to_owned()),
            ],
        )?;
        let mut start = command(&plan.gateway, None);
        start.arg("--config").arg(node);
        let mut gateway = Server::start("seiketsu-gateway", start, &plan.folder.join("gateway.log"))?;
        gateway
            .wait_until(|| process::http_status(operations, "/readyz") == Some(200))
            .with_context(|| format!("see {}", plan.folder.join("gateway.log").display()))?;
        Ok(Self { gateway, address: http, _origins: origins })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.gateway.pid()
    }
}

fn origin(plan: &Plan, address: SocketAddr, region: &str) -> anyhow::Result<Server> {
    let mut start = command(&plan.origin, None);
    start.args(["--listen", &address.to_string(), "--region", region]);
    let mut origin = Server::start("seiketsu-demo-origin", start, &plan.folder.join(format!("origin-{region}.log")))?;
    origin.wait_until(|| process::http_status(address, "/healthz") == Some(200))?;
    Ok(origin)
}

/// Puts each value where its name stands in double braces.
pub fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value))
}

/// A path as a JSON string, which is also a YAML string. Paths that are not UTF-8 lose what is not.
pub fn json_path(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        for template in [NODE, TENANTS] {
            let names = ["http", "operations", "tenants", "state_dir", "threads", "tenant", "west", "east"];
            assert!(!fill(template, &names.map(|name| (name, String::new()))).contains("{{"), "{template}");
        }
    }
}
