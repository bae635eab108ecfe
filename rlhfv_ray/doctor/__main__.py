"""`python -m rlhfv_ray.doctor doctor`: the doctor where no console script is installed."""

from rlhfv_ray.doctor import main

if __name__ == "__main__":
    main()
