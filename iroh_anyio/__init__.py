"""Iroh endpoints on asyncio and trio."""
