"""The OCapN data model in Python (Model and Locators specifications)."""
