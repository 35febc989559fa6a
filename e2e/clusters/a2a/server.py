"""An agent of the Agent2Agent protocol, as its SDK's own documentation writes one: it does its step to a text, and hands it on.

    server.py NAME [NEXT]      NAME is the host name that its peers call it by, NEXT that of the agent it hands on to

Without NEXT it is the last one and answers. Nobody tells the steps of each other: each knows its next by name.
"""

import sys

import uvicorn
from a2a.client import create_client
from a2a.helpers import get_message_text, get_stream_response_text, new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Role, SendMessageRequest
from starlette.applications import Starlette

name, following = sys.argv[1], sys.argv[2:]


class Step(AgentExecutor):
    """Signs what it gets, and lets the next one do the same."""

    async def execute(self, context, event_queue):
        text = f"{get_message_text(context.message)} > {name}"
        for next_name in following:
            text = await hand_on(next_name, text)
        await event_queue.enqueue_event(new_text_message(text))

    async def cancel(self, context, event_queue):
        raise NotImplementedError


async def hand_on(host, text):
    async with await create_client(f"http://{host}") as client:
        request = SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))
        answers = [get_stream_response_text(answer) async for answer in client.send_message(request)]
        return "".join(answers)


card = AgentCard(
    name=name,
    description="does one step",
    version="1",
    supported_interfaces=[AgentInterface(protocol_binding="JSONRPC", protocol_version="1.0", url=f"http://{name}/")],
    capabilities=AgentCapabilities(),
    default_input_modes=["text"],
    default_output_modes=["text"],
    skills=[AgentSkill(id="step", name="step", description="signs a text", tags=["text"])],
)
handler = DefaultRequestHandler(agent_executor=Step(), task_store=InMemoryTaskStore(), agent_card=card)
app = Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/")])
if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000)
