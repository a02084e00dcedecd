"""Write hms_hbac/recipes/table.json, which `hms-hbac recipes` prints (see nbs/07_models/12_listing.ipynb)."""
from hms_hbac.models.listing import write_table
from hms_hbac.models.recipe import recipe_table

if __name__ == "__main__":
    write_table(recipe_table())
    print("hms_hbac/recipes/table.json written")
