"use strict";
// A chat that thinks, acts and observes: replies stream from /v1/chat/completions, calls run on the
// server's tools by /page/call, and go back to the model until a reply has none. Whatever a model or
// a tool has written is set as text, never as markup.

const ROUNDS = 8; // replies with calls to one question
const byId = (id) => document.getElementById(id);
let messages = []; // what the API is sent; grows only with questions that got an answer
let tools = []; // on offer, in OpenAI's form
let askFirst = new Set(); // the names of those that run only after a yes
let running = null; // the AbortController of the question that is being answered

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function append(item) {
  // Follows the end only for a reader who is there
  const page = document.scrollingElement;
  const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  byId("log").append(item);
  if (isAtEnd) page.scrollTop = page.scrollHeight;
  return item;
}

function frame(kind, title, tag = "p") {
  const box = element("article", `frame ${kind}`);
  const body = element(tag, "writing");
  box.append(element("h2", "", title), body);
  append(box);
  return { box, body, add: (text) => body.append(text), end: () => body.classList.remove("writing") };
}

function fail(text) {
  const box = frame("error", "Error");
  box.add(text);
  box.end();
}

async function ask(url, body, signal) {
  const options = { signal };
  if (body) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(url, options);
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const parts = held.split("\n\n");
    held = parts.pop(); // the beginning of an event whose end is still on its way
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function requestOf(history) {
  const body = { model: byId("model").value, messages: history, adapter_scale: Number(byId("scale").value) };
  const names = new Set([...document.querySelectorAll("#tools input:checked")].map((box) => box.value));
  const offered = tools.filter((tool) => names.has(tool.function.name));
  if (offered.length) body.tools = offered;
  return body;
}

async function reply(history, signal) {
  const message = { role: "assistant", content: "" };
  const frames = {};
  const write = (kind, title, text) => {
    for (const other of Object.values(frames)) other.end();
    frames[kind] ??= frame(kind, title);
    frames[kind].body.classList.add("writing");
    frames[kind].add(text);
  };
  let reason = null;
  const response = await ask("v1/chat/completions", { ...requestOf(history), stream: true }, signal);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const [choice] = event.choices;
    reason = choice.finish_reason ?? reason;
    const delta = choice.delta;
    if (delta.reasoning_content) {
      message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
      write("think", "Think", delta.reasoning_content);
    }
    if (delta.content) {
      message.content += delta.content;
      write("answer", "Answer", delta.content);
    }
    for (const part of delta.tool_calls ?? []) {
      message.tool_calls ??= [];
      const call = (message.tool_calls[part.index] ??= { ...part, function: { name: "", arguments: "" } });
      call.function.name += part.function.name ?? "";
      call.function.arguments += part.function.arguments ?? "";
    }
  }
  for (const box of Object.values(frames)) box.end();
  if (reason === "length") fail("the reply was cut: it has the most tokens that one may have");
  return message;
}

function approved(name, box, signal) {
  if (!byId("ask").checked && !askFirst.has(name)) return true;
  const buttons = element("div", "buttons");
  const run = element("button", "", "Run");
  const skip = element("button", "", "Do not run");
  buttons.append(run, skip);
  box.append(buttons);
  run.focus();
  return new Promise((resolve, reject) => {
    const end = (value) => { buttons.remove(); resolve(value); };
    run.onclick = () => end(true);
    skip.onclick = () => end(false);
    signal.addEventListener("abort", () => { buttons.remove(); reject(signal.reason); });
  });
}

async function act(call, signal) {
  const shown = frame("act", "Act", "pre");
  shown.add(`${call.function.name}(${call.function.arguments})`);
  shown.end();
  let text = JSON.stringify({ error: "the user does not want this call" });
  if (await approved(call.function.name, shown.box, signal)) {
    const body = { name: call.function.name, arguments: JSON.parse(call.function.arguments), approved: true };
    text = (await (await ask("page/call", body, signal)).json()).content;
  }
  const seen = frame("observe", "Observe", "pre");
  seen.add(text);
  seen.end();
  return { role: "tool", tool_call_id: call.id, content: text };
}

async function answer(question) {
  const signal = running.signal;
  const history = [...messages, { role: "user", content: question }];
  for (let round = 0; round <= ROUNDS; round += 1) {
    const message = await reply(history, signal);
    history.push(message);
    if (!message.tool_calls) {
      if (message.content || message.reasoning_content) messages = history;
      else fail("the model wrote no answer, and no call that can be read");
      return;
    }
    if (round === ROUNDS) return fail("the model goes in circles; ask in other words");
    for (const call of message.tool_calls) history.push(await act(call, signal));
  }
}

async function send(event) {
  event.preventDefault();
  const field = byId("question");
  const question = field.value.trim();
  if (!question || running) return;
  select("chat");
  running = new AbortController();
  busy(true);
  field.value = "";
  grow();
  append(element("p", "turn user", question));
  try {
    await loaded; // a question may be sent before the models and tools have come
    await answer(question);
  } catch (error) {
    if (error !== "new") {
      fail(error.name === "AbortError" ? "stopped" : error.message);
      field.value ||= question; // nothing that was typed is lost
    }
  }
  for (const body of document.querySelectorAll(".writing")) body.classList.remove("writing");
  running = null;
  busy(false);
  field.focus();
}

function busy(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  byId("log").setAttribute("aria-busy", String(is));
}

// A line end is shown and made
const shown = (text) => text.replaceAll("\n", "⏎\n");

function explain(item, text, { count, some }) {
  item.classList.add(count === 1 ? "forced" : "held");
  item.tabIndex = 0;
  const others = count > some.length ? ", …" : "";
  const tell = () => {
    const list = some.map((one) => `“${one.replaceAll("\n", "⏎")}”`).join(" ");
    byId("allowed").textContent = `“${text.replaceAll("\n", "⏎")}”: ${count} allowed: ${list}${others}`;
  };
  item.addEventListener("focus", tell);
  item.addEventListener("click", tell);
}

async function showTokens() {
  const place = byId("ids");
  byId("allowed").textContent = "";
  place.textContent = "";
  byId("counts").textContent = "";
  if (!messages.length) return place.append("Ask something first.");
  try {
    const tokens = await (await ask("page/tokens", requestOf(messages))).json();
    const trained = tokens.filter((token) => token.trained).length;
    byId("counts").textContent = `${tokens.length} tokens, ${trained} of them to be learned.`;
    byId("rule").hidden = !tokens.some((token) => token.allowed);
    for (const { ids, text, trained: isTrained, allowed } of tokens) {
      const item = element("span", isTrained ? "trained" : "", shown(text));
      item.title = ids.join(" ");
      if (allowed) explain(item, text, allowed);
      place.append(item);
    }
  } catch (error) {
    place.append(error.message);
  }
}

function select(name) {
  for (const other of ["chat", "tokens"]) {
    byId(other).hidden = other !== name;
    const tab = byId(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
  }
  if (name === "tokens") showTokens();
}

function grow() {
  const field = byId("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

async function load() {
  const [models, offered] = await Promise.all([
    ask("v1/models").then((response) => response.json()),
    ask("page/tools").then((response) => response.json()),
  ]);
  tools = offered.tools;
  askFirst = new Set(offered.ask_first);
  for (const { id, owned_by: owner } of models.data) {
    const option = element("option", "", owner === "base" ? `${id} (base, no adapter)` : id);
    option.value = id;
    byId("model").append(option);
  }
  // The first adapter, where there is one: the base cannot call
  byId("model").selectedIndex = models.data.length > 1 ? 1 : 0;
  for (const { function: tool } of tools) {
    const label = element("label");
    const box = element("input");
    Object.assign(box, { type: "checkbox", checked: true, value: tool.name });
    label.append(box, ` ${tool.name}`, element("span", "note", ` ${tool.description ?? ""}`));
    byId("tools").append(label);
  }
  if (!tools.length) byId("tools").append(element("span", "note", "None; start with --tools FILE."));
}

byId("form").addEventListener("submit", send);
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => {
  running?.abort("new");
  messages = [];
  byId("log").textContent = "";
  select("chat");
  byId("question").focus();
});
byId("question").addEventListener("input", grow);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
byId("scale").addEventListener("input", (event) => {
  byId("scale-value").textContent = Number(event.target.value).toFixed(2);
});
for (const name of ["chat", "tokens"]) {
  byId(`tab-${name}`).addEventListener("click", () => select(name));
  byId(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "chat" ? "tokens" : "chat";
    select(other);
    byId(`tab-${other}`).focus();
  });
}
const loaded = load();
loaded.catch((error) => fail(error.message));
