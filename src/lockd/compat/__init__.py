"""The interfaces of other lock libraries, with lockd behind them."""
