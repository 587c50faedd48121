"""The demo: twenty brokers, real prices, one forecasting task, and a report one can show."""
