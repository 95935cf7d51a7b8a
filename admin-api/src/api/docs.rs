//! `GET /docs`: the description of the operations, for people. Plain HTML, made once from the description; nothing of it
//! comes from elsewhere, and nothing of it runs.

use std::{fmt::Write as _, sync::LazyLock};

use axum::response::{Html, IntoResponse, Response};
use http::header;
use serde_json::Value;

use super::{
    BASE, openapi,
    operations::{self, OPERATIONS},
};

static PAGE: LazyLock<String> = LazyLock::new(|| page(&openapi::document()));

pub(super) async fn get() -> Html<&'static str> {
    Html(&PAGE)
}

pub(super) async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("docs.css")).into_response()
}

fn page(document: &Value) -> String {
    let mut html = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Seiketsu Gateway control plane</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"/docs/style.css\">",
    );
    let _ =
        write!(html, "<h1>{}</h1><p>{}</p>", text(&document["info"]["title"]), text(&document["info"]["description"]));
    let _ = write!(html, "<p>For programs: <a href=\"{BASE}/openapi.json\">openapi.json</a></p>");
    for operation in OPERATIONS {
        let method = operation.method.as_str();
        let described = &document["paths"][format!("{BASE}{}", operation.path)][method.to_lowercase()];
        let _ = write!(
            html,
            "<details id=\"{id}\"><summary><b class=\"{method}\">{method}</b> <code>{BASE}{path}</code> {summary}</summary>\
             <p>{description}</p><p>For the role <b>{role}</b> and above{scope}.</p>",
            id = operation.id,
            path = escape(operation.path),
            summary = text(&described["summary"]),
            description = text(&described["description"]),
            role = operation.least.as_str(),
            scope = if operation.scope == operations::Scope::All { ", of all tenants" } else { "" },
        );
        parameters(&mut html, described);
        bodies(&mut html, document, "Body", &described["requestBody"]["content"]);
        for (status, response) in described["responses"].as_object().into_iter().flatten() {
            if status != "default" {
                let title = format!("{status}: {}", response["description"].as_str().unwrap_or_default());
                bodies(&mut html, document, &title, &response["content"]);
            }
        }
        html.push_str("</details>");
    }
    html.push_str("<h2>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let _ = write!(html, "<details id=\"schema-{0}\"><summary><code>{0}</code></summary>", escape(name));
        let _ = write!(html, "<pre>{}</pre></details>", json(schema));
    }
    html
}

fn parameters(html: &mut String, described: &Value) {
    let parameters = described["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    if parameters.is_empty() {
        return;
    }
    html.push_str("<table><tr><th>Parameter<th>In<th>What it is");
    for parameter in parameters {
        let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
        let _ = write!(html, "<tr><td><code>{name}</code><td>{place}<td>{}", text(&parameter["description"]));
    }
    html.push_str("</table>");
}

fn bodies(html: &mut String, document: &Value, title: &str, content: &Value) {
    for (media_type, body) in content.as_object().into_iter().flatten() {
        let schema = &body["schema"];
        let _ = write!(html, "<h4>{} <small>{}</small></h4>", escape(title), escape(media_type));
        match schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
            Some(name) => {
                let properties = document["components"]["schemas"][name]["properties"].as_object();
                let names: Vec<String> = properties.into_iter().flatten().map(|(name, _)| escape(name)).collect();
                let name = escape(name);
                let _ = write!(html, "<p><a href=\"#schema-{name}\">{name}</a>: <code>{}</code></p>", names.join(", "));
            }
            None => {
                let _ = write!(html, "<pre>{}</pre>", json(schema));
            }
        }
    }
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn json(value: &Value) -> String {
    escape(&serde_json::to_string_pretty(value).unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_on_the_page() {
        for operation in OPERATIONS {
            assert!(PAGE.contains(&format!("<details id=\"{}\">", operation.id)), "{}", operation.id);
        }
        assert!(!PAGE.contains("<script"));
    }
}
