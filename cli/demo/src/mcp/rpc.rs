//! What the server says: JSON-RPC 2.0 as MCP uses it, and one tool, `query`, over one table.

use serde_json::{Value, json};

/// The revisions that this server speaks, newest first. What differs between them does not occur here.
const REVISIONS: [&str; 3] = ["2025-06-18", "2025-03-26", "2024-11-05"];

/// JSON-RPC 2.0, section 5.1.
const PARSE_ERROR: i64 = -32_700;
const INVALID_REQUEST: i64 = -32_600;
const METHOD_NOT_FOUND: i64 = -32_601;
const INVALID_PARAMS: i64 = -32_602;

/// Orders per region: the database behind the tool.
const ORDERS: [(&str, u32); 4] = [("north", 1204), ("east", 877), ("south", 1540), ("west", 311)];

/// The answer to one message; `None` to a notification.
pub(super) fn answer(body: &[u8]) -> Option<Value> {
    let Ok(message) = serde_json::from_slice::<Value>(body) else {
        return Some(error(Value::Null, PARSE_ERROR, "this is no JSON"));
    };
    let id = message.get("id").cloned();
    let Some(method) = message.get("method").and_then(Value::as_str) else {
        return Some(error(id.unwrap_or_default(), INVALID_REQUEST, "there is no method"));
    };
    let id = id?;
    let params = message.get("params").unwrap_or(&Value::Null);
    Some(match call(method, params) {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, why)) => error(id, code, &why),
    })
}

/// A message of the event stream.
pub(super) fn message(number: u64) -> Value {
    let data = format!("row {number} of the live view");
    json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": data}})
}

fn call(method: &str, params: &Value) -> Result<Value, (i64, String)> {
    match method {
        "initialize" => Ok(json!({
            "protocolVersion": revision(params),
            "capabilities": {"tools": {}, "logging": {}},
            "serverInfo": {"name": "db-tool-server", "version": env!("CARGO_PKG_VERSION")},
        })),
        "ping" | "logging/setLevel" => Ok(json!({})),
        "tools/list" => Ok(json!({"tools": [tool()]})),
        "tools/call" => use_tool(params),
        _ => Err((METHOD_NOT_FOUND, format!("there is no method `{method}`"))),
    }
}

/// What the caller asks for if we speak it, else the newest that we do.
fn revision(params: &Value) -> &'static str {
    let asked = params.get("protocolVersion").and_then(Value::as_str);
    REVISIONS.into_iter().find(|known| Some(*known) == asked).unwrap_or(REVISIONS[0])
}

fn tool() -> Value {
    json!({
        "name": "query",
        "description": "Orders per region. Without a region: all of them.",
        "inputSchema": {
            "type": "object",
            "properties": {"region": {"type": "string", "enum": ORDERS.map(|(region, _)| region)}},
        },
    })
}

fn use_tool(params: &Value) -> Result<Value, (i64, String)> {
    match params.get("name").and_then(Value::as_str) {
        Some("query") => {}
        Some(other) => return Err((INVALID_PARAMS, format!("there is no tool `{other}`"))),
        None => return Err((INVALID_PARAMS, "no tool is named".to_owned())),
    }
    let wanted = params.pointer("/arguments/region").and_then(Value::as_str);
    let rows: Vec<String> = ORDERS
        .iter()
        .filter(|(region, _)| wanted.is_none_or(|wanted| wanted == *region))
        .map(|(region, orders)| format!("{region}: {orders} orders"))
        .collect();
    // A tool that cannot do it says so in its result, so that the model reads it.
    let (text, failed) = match rows.is_empty() {
        true => ("there is no such region".to_owned(), true),
        false => (rows.join("\n"), false),
    };
    Ok(json!({"content": [{"type": "text", "text": text}], "isError": failed}))
}

fn error(id: Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(message: Value) -> Value {
        answer(message.to_string().as_bytes()).expect("a request is answered")
    }

    #[test]
    fn the_revision_is_the_callers_where_we_speak_it() {
        let initialize = |revision: &str| {
            let params = json!({"protocolVersion": revision, "capabilities": {}, "clientInfo": {}});
            let said = ask(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}));
            said["result"]["protocolVersion"].as_str().map(str::to_owned)
        };
        assert_eq!(initialize("2025-03-26").as_deref(), Some("2025-03-26"));
        assert_eq!(initialize("2031-01-01").as_deref(), Some(REVISIONS[0]));
    }

    #[test]
    fn the_tool_that_is_listed_can_be_called() {
        let listed = ask(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}));
        let name = &listed["result"]["tools"][0]["name"];
        let params = json!({"name": name, "arguments": {"region": "south"}});
        let said = ask(json!({"jsonrpc": "2.0", "id": "x", "method": "tools/call", "params": params}));
        assert_eq!((&said["id"], &said["result"]["content"][0]["text"]), (&json!("x"), &json!("south: 1540 orders")));
    }

    #[test]
    fn a_notification_is_not_answered() {
        assert_eq!(answer(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_code() {
        assert_eq!(answer(b"nonsense").expect("answered")["error"]["code"], PARSE_ERROR);
        assert_eq!(ask(json!({"jsonrpc": "2.0", "id": 1}))["error"]["code"], INVALID_REQUEST);
        assert_eq!(ask(json!({"jsonrpc": "2.0", "id": 1, "method": "no/such"}))["error"]["code"], METHOD_NOT_FOUND);
    }
}
