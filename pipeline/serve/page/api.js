// The server as the page sees it; whatever fails is an Error with a message for people.
export class Api {
  // key: a function that returns the key, which may be empty.
  constructor(key) { this.key = key; }

  async model() {
    return (await (await this.ask("v1/models", {})).json()).data[0];
  }

  // The events of a filling. One that breaks off is an error, not a short text.
  async* infill(body, signal) {
    const answer = await this.ask("v1/infill", { method: "POST", body: JSON.stringify(body), signal });
    let rest = "";
    for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
      const parts = (rest + piece).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.slice("data: ".length);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    }
    throw new Error("the answer broke off: fill once more, and look whether the server still runs");
  }

  async ask(path, options) {
    const key = this.key();
    const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the server does not answer: look whether it still runs", { cause: error });
    }
    if (answer.ok) return answer;
    throw Object.assign(new Error(await messageOf(answer)), { status: answer.status });
  }
}

// What stands between page and server may answer in other words than the server's.
async function messageOf(answer) {
  const text = await answer.text();
  const isJson = answer.headers.get("Content-Type")?.startsWith("application/json");
  const message = isJson && JSON.parse(text).error?.message;
  return message || `${answer.status} ${answer.statusText}`;
}
