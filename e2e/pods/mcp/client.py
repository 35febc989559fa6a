"""A client of the Model Context Protocol: asks the server at a URL what it can do, and has it add two numbers.

    client.py URL
"""

import asyncio
import sys

from mcp.client import Client


async def main(url: str) -> None:
    async with Client(url) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        print("tools:", *tools)
        answer = await client.call_tool("add", {"a": 2, "b": 3})
        print("2 + 3 =", answer.content[0].text)


asyncio.run(main(sys.argv[1]))
