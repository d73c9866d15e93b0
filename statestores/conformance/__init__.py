"""The suites that every state store passes, one per face: for our stores and for those of third parties.

They need pytest and pytest-asyncio. How to use one is said at the top of its module.
"""
