"""A client of the Agent2Agent protocol: reads an agent's card, sends it a text, and prints the answer.

    client.py HOST TEXT
"""

import asyncio
import sys

from a2a.client import create_client
from a2a.helpers import get_stream_response_text, new_text_message
from a2a.types import Role, SendMessageRequest


async def main(host, text):
    async with await create_client(f"http://{host}") as client:
        request = SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))
        async for answer in client.send_message(request):
            print(get_stream_response_text(answer))


asyncio.run(main(sys.argv[1], sys.argv[2]))
