"""`python -m schemas` writes the JSON Schema files anew."""

from schemas.export import export

if __name__ == "__main__":
    for file in export():
        print(file)
